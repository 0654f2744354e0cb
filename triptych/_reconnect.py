"""Retries a call over broken connections, with backoff, and resumes it."""

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from triptych.errors import CallError
from triptych.v1.pipeline_pb2 import Event, RunState

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a broken call is begun again, and when to give up.

    The pauses double from `first_s` to `longest_s`; each is cut by up to a half at random, so that the callers of a
    gateway that restarts do not come back all at once.
    """

    first_s: float = 0.1
    longest_s: float = 5.0
    # Seconds in which nothing came; 0: a broken call is not repeated.
    give_up_after_s: float = 60.0
    # The same until the gateway has answered for the first time: nothing is lost yet, and its address may be wrong.
    connect_within_s: float = 10.0

    def patience_s(self, error: CallError) -> float:
        """How long to retry after this error."""
        if error.is_first_contact:
            return min(self.connect_within_s, self.give_up_after_s)
        return self.give_up_after_s

    def pause_s(self, num_failures: int) -> float:
        """The pause after so many failures in a row, from 1."""
        whole = min(self.longest_s, self.first_s * 2.0 ** min(num_failures - 1, 30))
        return whole * random.uniform(0.5, 1)  # noqa: S311 - no secret


class RetryState:
    """What one call has left of its backoff; what arrives renews it, up to the caller's own deadline."""

    def __init__(self, backoff: Backoff, deadline_s: float | None = None) -> None:
        """`deadline_s` is on the monotonic clock."""
        self._backoff = backoff
        self._deadline_s = math.inf if deadline_s is None else deadline_s
        self.succeeded()

    def succeeded(self) -> None:
        self._num_failures = 0
        self._silent_since_s = time.monotonic()

    async def wait_after(self, error: CallError) -> None:
        """Pauses after a broken call; raises the error where it is of another kind or the patience is over."""
        end_s = min(self._silent_since_s + self._backoff.patience_s(error), self._deadline_s)
        left_s = end_s - time.monotonic()
        if not error.is_broken_off or left_s <= 0:
            raise error
        self._num_failures += 1
        await asyncio.sleep(min(self._backoff.pause_s(self._num_failures), left_s))


async def repeated(call: Callable[[], Awaitable[Answer]], backoff: Backoff) -> Answer:
    """The answer of a call that may be made twice, such as one with a request_id."""
    persistence = RetryState(backoff)
    while True:
        try:
            return await call()
        except CallError as error:
            await persistence.wait_after(error)


async def resumed(
    follow: Callable[[int], AsyncGenerator[Event]],
    backoff: Backoff,
    *,
    after_sequence: int = 0,
    deadline_s: float | None = None,
) -> AsyncGenerator[Event]:
    """Yields a run's events once each, in order, from as many streams as it takes.

    `follow` streams the events after a sequence number. Raises CallError when a stream ends with an error that is no
    broken connection, and when nothing has come for as long as the backoff allows.
    """
    persistence, state = RetryState(backoff, deadline_s), RunState.RUN_STATE_UNSPECIFIED
    while True:
        try:
            async with aclosing(follow(after_sequence)) as events:
                async for event in events:
                    if event.sequence > after_sequence:
                        persistence.succeeded()
                        after_sequence = event.sequence
                        # Unspecified while there is more to come.
                        state = event.finished.state
                        yield event
            return
        except CallError as error:
            if state == RunState.RUN_STATE_FAILED:
                # It ends with the status of the failure.
                raise
            try:
                await persistence.wait_after(error)
            except CallError:
                # What there was has come; images may have been selected since, but nobody is there to say so.
                if state != RunState.RUN_STATE_UNSPECIFIED:
                    return
                raise


def deadline(timeout_s: float | None) -> float | None:
    """On the monotonic clock."""
    return None if timeout_s is None else time.monotonic() + timeout_s


def left(deadline_s: float | None) -> float | None:
    """As a call's timeout, which must not be negative."""
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
