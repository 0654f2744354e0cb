"""Decoding beside the event loop."""

import asyncio
import threading

from gateway.planning.picture_decoding import MAX_AT_ONCE, decode


async def test_pictures_are_decoded_two_at_a_time():
    running, most, lock, full = 0, 0, threading.Lock(), threading.Barrier(MAX_AT_ONCE)

    def read(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # Passes when so many are here at once; another one would be counted before it.
        full.wait(timeout=60)
        with lock:
            running -= 1
        return number

    count = 3 * MAX_AT_ONCE
    assert await asyncio.gather(*(decode(read, one) for one in range(count))) == list(range(count))
    assert most == MAX_AT_ONCE
