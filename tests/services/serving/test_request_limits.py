"""What a process takes from callers: fields counted before objects are made, memory by shares, connections by address."""

import asyncio

import pytest

from services.errors import InvalidRequest, RateLimited
from services.serving.limits.connection_guard import Connection, choose_surplus
from services.serving.limits.request_budget import MAX_SLOW_READS, BodyTooSlow, RequestBudget, SmallReads
from services.serving.limits.wire_limits import MAX_FIELDS, check_num_fields, holds_files
from tests.gateway.run_fixtures import spec
from triptych.v1.pipeline_pb2 import CancelRunRequest, CreateRunRequest, GetRunRequest, SelectImagesRequest
from triptych.v1.refiner_pb2 import RankRequest, RankResponse

CREATE = CreateRunRequest.DESCRIPTOR


def test_a_message_of_empty_submessages_is_refused_before_it_is_parsed():
    empty_submessages = b"\x12\x80\x80\x80\x10" + b"\x1a\x00" * (16 * 2**20)
    with pytest.raises(InvalidRequest, match=f"at most {MAX_FIELDS} fields"):
        check_num_fields(empty_submessages, CREATE)


def test_a_usual_run_passes():
    check_num_fields(CreateRunRequest(request_id="a", spec=spec()).SerializeToString(), CREATE)


def test_elements_of_packed_fields_count():
    scores = RankResponse(scores=[0.0] * (MAX_FIELDS + 1)).SerializeToString()
    with pytest.raises(InvalidRequest, match="fields"):
        check_num_fields(scores, RankResponse.DESCRIPTOR)


def test_names_count():
    with pytest.raises(InvalidRequest, match="fields"):
        check_num_fields(
            CancelRunRequest(images=[""] * (MAX_FIELDS + 1)).SerializeToString(), CancelRunRequest.DESCRIPTOR
        )


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\x7f", b"\x0f", b"\x0a\x05abc", b"\xff" * 12])
def test_bytes_that_are_no_message_are_left_to_the_parser(data):
    check_num_fields(data, CREATE)


def test_which_requests_can_hold_files():
    assert [
        holds_files(kind.DESCRIPTOR)
        for kind in (CreateRunRequest, SelectImagesRequest, RankRequest, GetRunRequest)
    ] == [True, True, True, False]


async def test_a_caller_that_used_up_its_share_does_not_hold_up_others():
    budget = RequestBudget(total_bytes=100, share_bytes=60, wait_s=0.01)
    first = await budget.reserve("mallory", 60)
    with pytest.raises(RateLimited, match="too many large requests"):
        await budget.reserve("mallory", 1)
    other = await budget.reserve("alice", 40)
    assert budget.used_bytes == 100
    for one in (first, other, first):
        one.release()
    assert budget.used_bytes == 0


async def test_what_is_given_back_goes_to_the_next_waiter():
    budget = RequestBudget(total_bytes=100, share_bytes=60)
    first = await budget.reserve("alice", 60)
    waiting = asyncio.create_task(budget.reserve("alice", 50))
    await asyncio.sleep(0)
    first.shrink(10)
    assert (await waiting).num_bytes == 50
    assert budget.used_bytes == 60


async def test_a_request_that_is_cancelled_while_it_waits_takes_nothing():
    budget = RequestBudget(total_bytes=100, share_bytes=60)
    first = await budget.reserve("alice", 60)
    waiting = asyncio.create_task(budget.reserve("alice", 50))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.release()
    assert budget.used_bytes == 0


async def test_slow_small_bodies_are_given_up_when_they_are_many():
    reads = SmallReads()
    never = [asyncio.Event() for _ in range(MAX_SLOW_READS + 3)]
    tasks = [asyncio.create_task(reads.read(one.wait())) for one in never]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    while len(done) < 3:
        more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
        done |= more
    assert {type(task.exception()) for task in done} == {BodyTooSlow}
    assert len(pending) == MAX_SLOW_READS
    for task, event in zip(tasks, never, strict=True):
        event.set()
        if task in pending:
            assert await task


def connections(number, *, silent_s, num_bytes=10, host="10.0.0.1", first=0):
    return [
        Connection(first + i, (host, 1000 + first + i), silent_s + i / 1e3, num_bytes) for i in range(number)
    ]


def test_connections_that_never_said_anything_are_closed():
    silent = connections(3, silent_s=20, num_bytes=0)
    surplus = choose_surplus([*silent, *connections(3, silent_s=20, first=10)], lambda *_: False, most=100)
    assert surplus == silent


def test_of_an_address_with_too_many_the_longest_silent_go_and_those_at_work_stay():
    crowd = connections(8, silent_s=1)
    others = connections(2, silent_s=9, host="10.0.0.2", first=20)
    surplus = choose_surplus([*crowd, *others], lambda _host, port: port == 1007, per_address=5, most=100)
    assert surplus == [crowd[6], crowd[5], crowd[4]]


def test_of_too_many_in_all_the_longest_silent_go():
    found = [*connections(3, silent_s=1), *connections(3, silent_s=50, host="10.0.0.2", first=20)]
    assert [one.peer[0] for one in choose_surplus(found, lambda *_: False, most=4)] == ["10.0.0.2"] * 2
