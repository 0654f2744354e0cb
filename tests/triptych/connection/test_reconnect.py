"""Calls over broken connections: what is begun again, from where, and when it is given up."""

import asyncio

import grpc
import pytest
from hypothesis import given, strategies as st

from triptych._reconnect import Backoff, repeated, resumed
from triptych.errors import CallError, ErrorDetails, NoWorker, Unreachable
from triptych.v1.pipeline_pb2 import Event, RunState

AT_ONCE = Backoff(first_s=0, longest_s=0, give_up_after_s=60)
NEVER = Backoff(give_up_after_s=0)
BROKEN = Unreachable("gone", grpc.StatusCode.UNAVAILABLE, ErrorDetails())
REFUSED = NoWorker("nobody", grpc.StatusCode.UNAVAILABLE, ErrorDetails(reason="NO_WORKER"))
SUCCEEDED = Event.Finished(state=RunState.RUN_STATE_SUCCEEDED)
FAILED = Event.Finished(state=RunState.RUN_STATE_FAILED)


class Log:
    """Events 1 to 6, streamed in pieces; between the pieces the stream breaks."""

    def __init__(
        self, *pieces: list[int], error: CallError = BROKEN, end: Event.Finished | None = SUCCEEDED
    ) -> None:
        self.pieces = list(pieces)
        self.end = end
        self.error = error
        self.asked: list[int] = []

    async def follow(self, after_sequence):
        self.asked.append(after_sequence)
        for sequence in self.pieces.pop(0):
            yield Event(sequence=sequence, finished=self.end if sequence == 6 else None)
        if self.pieces:
            raise self.error


async def sequences(log, backoff=AT_ONCE, **more):
    return [event.sequence async for event in resumed(log.follow, backoff, **more)]


async def test_a_broken_stream_goes_on_after_the_last_event_that_came():
    log = Log([1, 2], [3], [], [4, 5, 6])
    assert await sequences(log) == [1, 2, 3, 4, 5, 6]
    assert log.asked == [0, 2, 3, 3]


async def test_events_that_come_again_are_reported_once():
    assert await sequences(Log([1, 2], [1, 2, 3], [2, 3, 4, 5, 6])) == [1, 2, 3, 4, 5, 6]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=12))
def test_however_a_stream_breaks_and_repeats_itself_each_event_comes_once(breaks):
    """Each break: how many new events came before it, and how many old ones the stream began with."""
    pieces, seen = [], 0
    for num_new, num_repeated in breaks:
        pieces.append(list(range(max(1, seen - num_repeated + 1), seen + num_new + 1)))
        seen += num_new
    pieces.append([seen + 1])
    log = Log(*pieces, end=None)
    assert asyncio.run(sequences(log)) == list(range(1, seen + 2))


async def test_numbers_that_are_missing_are_no_reason_to_wait():
    assert await sequences(Log([1, 3], [6])) == [1, 3, 6]


async def test_a_stream_that_begins_later_reports_nothing_from_before():
    log = Log([3, 4], [4, 5, 6])
    assert await sequences(log, after_sequence=3) == [4, 5, 6]


async def test_an_error_that_is_no_broken_connection_is_raised_at_once():
    log = Log([1], [2], error=REFUSED)
    with pytest.raises(NoWorker):
        await sequences(log)
    assert log.asked == [0]


async def test_a_connection_that_breaks_after_the_last_event_is_begun_again_in_case_there_is_more():
    log = Log([1, 6], [7])
    assert await sequences(log) == [1, 6, 7]
    assert log.asked == [0, 6]


async def test_a_gateway_that_goes_away_after_the_last_event_is_not_missed():
    assert await sequences(Log([1, 6], [7]), NEVER) == [1, 6]


async def test_what_a_failed_run_ends_with_is_raised_after_its_last_event():
    events = resumed(Log([1, 6], [7], error=REFUSED, end=FAILED).follow, AT_ONCE)
    assert [(await anext(events)).sequence for _ in range(2)] == [1, 6]
    with pytest.raises(NoWorker):
        await anext(events)


async def test_without_patience_the_first_break_is_raised():
    with pytest.raises(Unreachable):
        await sequences(Log([1], [2]), NEVER)


async def test_a_gateway_that_never_answered_is_given_up_earlier():
    never_reached = Unreachable("refused", grpc.StatusCode.UNAVAILABLE, ErrorDetails())
    never_reached.is_first_contact = True
    backoff = Backoff(first_s=0, longest_s=0, give_up_after_s=60, connect_within_s=0)
    log = Log([], [6], error=never_reached)
    with pytest.raises(Unreachable):
        await sequences(log, backoff)
    assert log.asked == [0]
    assert await sequences(Log([], [6]), backoff) == [6]


async def test_a_deadline_that_has_passed_ends_the_patience():
    with pytest.raises(Unreachable):
        await sequences(Log([1], [2]), deadline_s=0.0)


async def test_a_call_that_may_be_made_twice_is_repeated_until_it_is_answered():
    answers = [BROKEN, BROKEN, "done"]

    async def call():
        answer = answers.pop(0)
        if isinstance(answer, CallError):
            raise answer
        return answer

    assert await repeated(call, AT_ONCE) == "done"


def test_the_pauses_double_up_to_the_longest_and_vary_by_half():
    backoff = Backoff(first_s=1, longest_s=5)
    for num_failures, whole in [(1, 1), (2, 2), (3, 4), (4, 5), (400, 5)]:
        assert whole / 2 <= backoff.pause_s(num_failures) <= whole


@pytest.mark.parametrize(
    ("code", "reason", "is_broken_off"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", True),
        (grpc.StatusCode.INTERNAL, "", True),
        (grpc.StatusCode.UNAVAILABLE, "WORKER_EVICTED", True),
        (grpc.StatusCode.UNAVAILABLE, "NO_WORKER", False),
        (grpc.StatusCode.INTERNAL, "INTERNAL", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", False),
        (grpc.StatusCode.UNIMPLEMENTED, "", False),
    ],
)
def test_a_call_is_broken_off_when_no_server_said_why(code, reason, is_broken_off):
    assert CallError("", code, ErrorDetails(reason=reason)).is_broken_off == is_broken_off
