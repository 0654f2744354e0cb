"""When runs begin, and what waiting callers get."""

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from gateway.access.caller import CallerLimits
from gateway.runs.admission import RETRY_AFTER_S, Admission, AdmissionLimits
from services.errors import QueueFull, RateLimited


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Told:
    """What a waiting run reports."""

    def __init__(self):
        self.places = []
        self.waits_s = []

    def __call__(self, position, wait_s):
        self.places.append(position)
        self.waits_s.append(wait_s)


@pytest.fixture
async def admit():
    made = []

    def make(clock=None, **room):
        made.append(Admission(AdmissionLimits(**room), clock=clock or Clock()))
        return made[-1]

    yield make
    for admission in made:
        admission.close()


def listening(admission, caller, reported):
    turn = admission.enter(caller)
    turn.listen(reported)
    return turn


async def test_a_run_begins_at_once_where_there_is_room(admit):
    reported = Told()
    turn = admit(max_running=1).enter("ann")
    turn.listen(reported)
    assert (turn.is_waiting, reported.places) == (False, [])


async def test_further_runs_wait_and_know_their_place(admit):
    admission, reported = admit(max_running=1), [Told(), Told()]
    first = admission.enter("ann")
    turns = [listening(admission, "ann", one) for one in reported]
    assert [one.is_waiting for one in turns] == [True, True]
    assert [one.places for one in reported] == [[1], [2]]
    first.leave()
    assert reported[0].places == [1, 0]
    await turns[0].wait()


async def test_callers_begin_in_turns_however_much_one_of_them_asks_for(admit):
    admission = admit(max_running=1)
    running = admission.enter("ann")
    turns = [admission.enter(caller) for caller in ("ann", "ann", "ann", "bob", "eve")]
    order = []
    for _ in turns:
        running.leave()
        running = next(one for one in turns if not one.is_waiting and one not in order)
        order.append(running)
    assert [turns.index(one) for one in order] == [0, 3, 4, 1, 2]


async def test_a_newcomer_s_place_is_that_of_its_turn(admit):
    admission, reported = admit(max_running=1), Told()
    for _ in range(5):
        admission.enter("ann")
    listening(admission, "bob", reported)
    assert reported.places == [2]


async def test_a_caller_s_own_limit_lets_others_pass(admit):
    admission = admit(max_running=3)
    mine = [admission.enter("ann", CallerLimits(max_running_runs=1)) for _ in range(2)]
    other = admission.enter("bob")
    assert [one.is_waiting for one in (*mine, other)] == [False, True, False]
    mine[0].leave()
    assert not mine[1].is_waiting


async def test_a_limit_for_all_callers_counts_for_each(admit):
    admission = admit(max_running=3, max_running_per_caller=1)
    turns = [admission.enter(caller) for caller in ("ann", "ann", "bob")]
    assert [one.is_waiting for one in turns] == [False, True, False]


async def test_a_full_queue_refuses_with_a_time_to_come_back(admit):
    admission = admit(max_running=1, max_queued=1)
    for caller in ("ann", "bob"):
        admission.enter(caller)
    with pytest.raises(QueueFull, match="1 runs are under way and 1 wait") as raised:
        admission.enter("eve")
    assert raised.value.retry_after_s == RETRY_AFTER_S


async def test_one_caller_cannot_fill_the_queue(admit):
    admission = admit(max_running=1, max_queued=3, max_queued_per_caller=2)
    for _ in range(3):
        admission.enter("ann")
    with pytest.raises(RateLimited, match="1 runs under way and 2 that wait, at most 2 can") as raised:
        admission.enter("ann")
    assert raised.value.reason == "RATE_LIMITED"
    assert admission.enter("bob").is_waiting


async def test_a_caller_s_own_queue_limit_comes_before_that_of_all(admit):
    admission = admit(max_running=1, max_queued_per_caller=0)
    for _ in range(3):
        admission.enter("ann", CallerLimits(max_queued_runs=2))
    with pytest.raises(RateLimited):
        admission.enter("ann")


async def test_what_was_accepted_before_is_refused_no_more(admit):
    admission = admit(max_running=1, max_queued=0)
    turns = [admission.enter("ann", was_accepted=True) for _ in range(2)]
    assert [one.is_waiting for one in turns] == [False, True]


async def test_a_client_that_leaves_the_queue_makes_room_in_it(admit):
    admission = admit(max_running=1, max_queued=1)
    admission.enter("ann")
    waiting = admission.enter("bob")
    for _ in range(2):
        waiting.leave()
    assert admission.num_waiting == 0
    assert admission.enter("eve").is_waiting


async def test_leaving_twice_gives_one_place(admit):
    admission = admit(max_running=1)
    first = admission.enter("ann")
    turns = [admission.enter("ann") for _ in range(2)]
    for _ in range(2):
        first.leave()
    assert [one.is_waiting for one in turns] == [False, True]


async def test_no_wait_is_reported_before_one_was_measured(admit):
    admission, reported = admit(max_running=1), Told()
    admission.enter("ann")
    listening(admission, "ann", reported)
    assert reported.waits_s == [None]


async def test_the_wait_is_that_of_the_queue_s_own_pace(admit):
    clock, reported = Clock(), Told()
    admission = admit(clock, max_running=1)
    running = admission.enter("ann")
    waiting = [admission.enter("ann") for _ in range(4)]
    for turn in waiting[:3]:
        clock.now += 10
        running.leave()
        running = turn
    listening(admission, "ann", reported)
    assert (reported.places, reported.waits_s) == ([2], [20.0])


async def test_a_pause_without_anybody_waiting_is_no_pace(admit):
    clock, reported = Clock(), Told()
    admission = admit(clock, max_running=1)
    first = admission.enter("ann")
    second = admission.enter("ann")
    first.leave()
    clock.now += 1000
    third = admission.enter("ann")
    second.leave()
    listening(admission, "ann", reported)
    assert reported.waits_s == [None]
    third.leave()


async def test_those_who_wait_are_given_their_new_places_now_and_then(admit, monkeypatch):
    monkeypatch.setattr("services.queues.REPORT_EVERY_S", 0.0)
    admission, reported = admit(max_running=1), Told()
    first = admission.enter("ann")
    admission.enter("ann")
    listening(admission, "ann", reported)
    first.leave()
    assert reported.places == [2]
    moved = asyncio.Event()
    asyncio.get_running_loop().call_later(0, moved.set)
    await moved.wait()
    assert reported.places == [2, 1]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_and_goes_no_bound_is_broken_and_nobody_waits_in_vain(admit, seed):
    rng = random.Random(seed)
    admission = admit(max_running=4, max_running_per_caller=2, max_queued=10, max_queued_per_caller=5)
    turns = []
    for _ in range(300):
        if turns and rng.random() < 0.5:
            turns.pop(rng.randrange(len(turns))).leave()
        else:
            with suppress(QueueFull):
                turns.append(admission.enter(rng.choice("abcd")))
        running = Counter(turn.caller for turn in turns if not turn.is_waiting)
        waiting = Counter(turn.caller for turn in turns if turn.is_waiting)
        assert (running.total(), waiting.total()) == (admission.num_running, admission.num_waiting)
        assert running.total() <= 4
        assert waiting.total() <= 10
        assert max(running.values(), default=0) <= 2
        assert running.total() == 4 or all(running[caller] == 2 for caller in waiting)
