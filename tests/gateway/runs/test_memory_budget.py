"""Memory that is shared, and the pace of a queue."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway.runs.memory_budget import WeightedSemaphore
from services.queues import QueueRate
from tests.waiting import underway


async def take(budget, amount):
    stack = AsyncExitStack()
    await stack.enter_async_context(budget.holding(amount))
    return stack


async def test_what_does_not_fit_waits_until_it_does():
    budget = WeightedSemaphore(10)
    first = await take(budget, 6)
    second = await underway(take(budget, 6))
    assert not second.done()
    await first.aclose()
    await (await second).aclose()


async def test_a_small_one_does_not_overtake_a_large_one():
    budget = WeightedSemaphore(10)
    first = await take(budget, 6)
    large, small = await underway(take(budget, 10)), await underway(take(budget, 1))
    assert (large.done(), small.done()) == (False, False)
    await first.aclose()
    await (await large).aclose()
    await (await small).aclose()


async def test_what_is_more_than_there_is_has_all_for_itself():
    budget = WeightedSemaphore(10)
    large = await take(budget, 1000)
    small = await underway(take(budget, 1))
    assert not small.done()
    await large.aclose()
    await (await small).aclose()


async def test_a_client_that_gives_up_waiting_lets_others_through():
    budget = WeightedSemaphore(10)
    first = await take(budget, 6)
    large, small = await underway(take(budget, 10)), await underway(take(budget, 4))
    large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await large
    await (await small).aclose()
    await first.aclose()


async def test_what_was_given_to_one_who_gave_up_is_not_lost():
    budget = WeightedSemaphore(10)
    first = await take(budget, 10)
    second = await underway(take(budget, 10))
    await first.aclose()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await (await take(budget, 10)).aclose()


def test_a_pace_is_unknown_before_it_is_measured():
    assert QueueRate().wait_s(3) is None


def test_a_wait_is_the_measured_time_for_each_place():
    pace = QueueRate()
    pace.moved(places=2, seconds=10)
    assert pace.wait_s(3) == 15


def test_a_pace_follows_what_is_measured_later():
    pace = QueueRate()
    pace.moved(1, 100)
    for _ in range(40):
        pace.moved(1, 1)
    assert pace.wait_s(1) == pytest.approx(1, abs=0.2)


def test_a_queue_that_moves_in_bursts_has_the_pace_of_all_of_them():
    pace = QueueRate()
    for _ in range(5):
        pace.moved(1, 10)
        for _ in range(7):
            pace.moved(1, 0)
        assert pace.wait_s(8) == pytest.approx(10, abs=4)


def test_a_queue_that_grew_ahead_gives_no_estimate():
    pace = QueueRate()
    pace.moved(places=-2, seconds=1)
    assert pace.wait_s(1) is None
