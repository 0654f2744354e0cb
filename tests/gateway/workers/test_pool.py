"""Workers: trusted, and chosen."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from grpc_health.v1 import health_pb2

from gateway.stages import GENERATE
from gateway.workers.errors import StageError
from gateway.workers.pool import (
    LONGEST_PAUSE_S,
    LOST_PAUSE_S,
    MAX_BROKEN_ANSWERS,
    STALL_PAUSE_S,
    Pool,
    models_of,
)
from services.errors import NoWorker, WorkerEvicted
from tests.gateway.fake_stage import discovery_of, pipeline
from tests.gateway.run_fixtures import collect, spec
from tests.waiting import underway

LOST = StageError("it went away", reason="WORKER_LOST")
BROKEN = StageError("it answered with an empty event", reason="WORKER_BROKEN")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def pool_of(*workers, **more):
    return Pool(discovery_of(*workers, **more))


async def chosen(pool, *model, **how):
    """The worker that would be given an image now."""
    async with pool.acquire(*model, **how) as worker:
        return worker


async def test_the_worker_with_the_fewest_images_is_chosen(worker, other):
    other.info.digest = worker.info.digest
    async with pool_of(worker, other) as pool, pool.acquire("d1") as first, pool.acquire("d1") as second:
        assert second is not first
        async with pool.acquire("d1", exclude=[first.address]):
            assert await chosen(pool, "d1") is first


async def test_only_a_worker_with_the_run_s_model_is_chosen(worker, other):
    async with pool_of(worker, other) as pool:
        assert (await chosen(pool, "d2")).address == other.address
        with pytest.raises(NoWorker, match="no generator has the model that this run began with"):
            await chosen(pool, "d3")


async def test_a_worker_that_was_lost_is_trusted_again_after_a_pause(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        pool.report_failed(found, LOST)
        with pytest.raises(NoWorker, match="its call broke off; it is given nothing for 1 s"):
            await chosen(pool, "d1")
        clock.now += LOST_PAUSE_S
        assert await chosen(pool, "d1") is found


async def test_the_pause_grows_with_each_loss_until_a_picture_arrives(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        pauses = []
        for _ in range(4):
            pool.report_failed(found, LOST)
            pauses.append(found.paused_until - clock.now)
            clock.now = found.paused_until
            await pool.refresh()
        pool.report_succeeded(found)
        pool.report_failed(found, LOST)
        assert [*pauses, found.paused_until - clock.now] == [1, 2, 4, 8, 1]


async def test_a_pause_has_an_end(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        for _ in range(40):
            pool.report_failed(found, LOST)
            pause_s = found.paused_until - clock.now
            clock.now = found.paused_until
            await pool.refresh()
        assert pause_s == LONGEST_PAUSE_S


async def test_all_calls_that_break_off_at_once_are_one_loss(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        for _ in range(5):
            pool.report_failed(found, LOST)
        assert (found.num_losses, found.paused_until) == (1, clock.now + LOST_PAUSE_S)


async def test_a_worker_that_was_lost_again_shows_with_one_picture_that_it_can(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        for _ in range(2):
            pool.report_failed(found, LOST)
            clock.now = found.paused_until
            await pool.refresh()
        async with pool.acquire("d1"):
            with pytest.raises(NoWorker):
                await chosen(pool, "d1")
            pool.report_succeeded(found)
            assert await chosen(pool, "d1") is found


async def test_a_worker_that_was_lost_once_is_given_work_as_before(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        pool.report_failed(found, LOST)
        clock.now += LOST_PAUSE_S
        await pool.refresh()
        async with pool.acquire("d1"):
            assert await chosen(pool, "d1") is found


async def test_a_worker_that_stalled_is_left_alone_though_it_answers(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        clock.now += 300
        pool.report_stalled(found, "it has been silent", silence_s=300)
        clock.now += LOST_PAUSE_S
        await pool.refresh()
        assert pool.healthy == []
        clock.now += STALL_PAUSE_S
        await pool.refresh()
        assert pool.healthy == [found]


async def test_a_worker_that_goes_on_with_others_has_not_stalled(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        clock.now += 290
        pool.touch(found)
        clock.now += 10
        pool.report_stalled(found, "image 3 makes no progress", silence_s=300)
        assert pool.healthy == [found]


async def test_those_who_wait_at_a_stalled_worker_are_reported(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        reported = []
        found.on_stall.add(lambda: reported.append("leave"))
        clock.now += 300
        pool.report_stalled(found, "it has been silent", silence_s=300)
        assert reported == ["leave"]


async def test_one_wrong_answer_is_not_held_against_a_worker_but_several_are(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        for _ in range(MAX_BROKEN_ANSWERS - 1):
            pool.report_failed(found, BROKEN)
        assert pool.healthy == [found]
        pool.report_failed(found, BROKEN)
        assert pool.healthy == []


async def test_a_worker_that_drains_gets_nothing_new_and_no_blame(worker, clock):
    async with pool_of(worker, clock=clock) as pool:
        found = await chosen(pool, "d1")
        pool.report_failed(found, WorkerEvicted("this worker stopped"))
        assert (pool.healthy, found.num_losses) == ([], 0)


async def test_a_picture_waits_for_a_worker(worker):
    await worker.checks.set(GENERATE.service, health_pb2.HealthCheckResponse.NOT_SERVING)
    async with pool_of(worker) as pool:
        waiting = asyncio.ensure_future(chosen(pool, "d1", timeout_s=3600.0))
        await pool.refresh()
        await pool.refresh()
        assert not waiting.done()
        await worker.checks.set(GENERATE.service, health_pb2.HealthCheckResponse.SERVING)
        await pool.refresh()
        assert (await waiting).address == worker.address


async def test_a_worker_that_failed_before_is_chosen_where_there_is_no_other(worker, other):
    other.info.digest = worker.info.digest
    async with pool_of(worker, other) as pool:
        assert (await chosen(pool, "d1", avoid=[worker.address])).address == other.address
        await other.kill()
        await pool.refresh()
        assert (await chosen(pool, "d1", avoid=[worker.address])).address == worker.address


async def test_a_picture_that_is_to_be_alone_waits_until_its_worker_has_nothing_else(worker):
    async with pool_of(worker) as pool, AsyncExitStack() as stack:
        async with pool.acquire("d1") as found:
            waiting = await underway(stack.enter_async_context(pool.acquire("d1", exclusive=True)))
            with pytest.raises(NoWorker):
                await chosen(pool, "d1")
            assert not waiting.done()
        assert await waiting is found
        with pytest.raises(NoWorker):
            await chosen(pool, "d1")
        await stack.aclose()
        assert await chosen(pool, "d1") is found


async def test_a_picture_that_no_longer_wants_to_be_alone_leaves_its_worker_to_others(worker):
    async with pool_of(worker) as pool, pool.acquire("d1") as found:
        waiting = await underway(chosen(pool, "d1", exclusive=True))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await chosen(pool, "d1") is found


async def test_a_picture_that_is_to_be_alone_goes_elsewhere_when_its_worker_is_lost(worker, other):
    other.info.digest = worker.info.digest
    async with pool_of(worker, other) as pool:
        on_second = {"exclude": [worker.address]}
        async with pool.acquire("d1", **on_second) as second, pool.acquire("d1", **on_second):
            async with pool.acquire("d1", exclude=[other.address]) as first:
                waiting = await underway(chosen(pool, "d1", exclusive=True))
                pool.report_failed(first, LOST)
            await pool.refresh()
            assert not waiting.done()
        assert await waiting is second


async def test_models_are_distinguished_by_their_digest(worker, other):
    async with pool_of(worker, other) as pool:
        models = models_of(await pool.healthy_or_raise())
    assert {(model.digest, count) for model, count in models} == {("d1", 1), ("d2", 1)}


async def test_the_images_of_a_run_spread_over_the_workers():
    async with pipeline(generators=2) as gateway:
        for one in gateway.generators:
            one.close_gates(0, 1, 2, 3)
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 4}, refine=None, upscale=None)):
            events.append(event)
            if sum(event.HasField("stage_started") for event in events) == 4:
                for one in gateway.generators:
                    for gate in one.gates.values():
                        gate.set()
        assert [len(one.requests) for one in gateway.generators] == [2, 2]


async def test_all_pictures_of_a_stage_are_made_with_one_model():
    async with pipeline(generators=2) as gateway:
        gateway.generators[1].info.digest = "d2"
        await gateway.notice()
        await collect(gateway, spec(generate={"count": 4}, refine=None, upscale=None))
        assert sorted(len(one.requests) for one in gateway.generators) == [0, 4]
