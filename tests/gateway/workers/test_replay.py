"""Pictures whose workers are lost, stall or drain: made again elsewhere, and given up where they are the cause."""

import asyncio

from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.targets import Target
from services.errors import WorkerEvicted
from tests.gateway.fake_stage import ScriptedGenerator, image, pipeline
from tests.gateway.run_fixtures import attempts, collect, finished, ready, spec, warnings
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import StageEvent

SKETCHES = {"refine": None, "upscale": None}
# Begun, and then no picture: an answer that cannot be right.
CUT_SHORT = [StageEvent(accepted=StageEvent.Accepted(num_images=1))]


class Crashing(ScriptedGenerator):
    """Dies of image 1 as soon as it has begun with it."""

    async def _script(self, index, seed):
        yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
        yield StageEvent(progress=StageEvent.Progress(index=index, step=1, num_steps=2))
        if index == 1:
            self.dying = asyncio.ensure_future(self.kill())
            await asyncio.Event().wait()
        yield StageEvent(image=StageEvent.FinishedImage(index=index, image=image(seed), seed=seed))


async def test_a_picture_that_kills_its_workers_is_stopped_after_three_and_named():
    async with pipeline(generators=5, generator=Crashing) as gateway:
        events = await collect(gateway, spec(generate={"count": 3}, **SKETCHES))
        assert [attempt for _, attempt in attempts(events, 1)] == [1, 2, 3]
        assert len({worker for worker, _ in attempts(events, 1)}) == 3
        assert finished(events).error.reason == "IMAGE_POISONED"
        assert "generate-1 is given up: 3 workers failed as they made it" in finished(events).error.message
        assert [one.reason for one in warnings(events) if one.image.endswith("generate-1")] == [
            "WORKER_LOST",
            "WORKER_LOST",
            "IMAGE_POISONED",
        ]


async def test_a_poisoned_picture_leaves_the_others_of_its_run_whole():
    async with pipeline(generators=5, generator=Crashing) as gateway:
        events = await collect(gateway, spec(generate={"count": 8}, **SKETCHES))
        assert sorted(one.index for one in ready(events)) == [0, 2, 3, 4, 5, 6, 7]
        assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED


class Sharing(ScriptedGenerator):
    """Dies of image 1, with all that it has at the time; other pictures wait for their gates."""

    async def _script(self, index, seed):
        yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
        yield StageEvent(progress=StageEvent.Progress(index=index, step=1, num_steps=2))
        if index == 1:
            self.dying = asyncio.ensure_future(self.kill())
            await asyncio.Event().wait()
        await self.gates[index].wait()
        yield StageEvent(image=StageEvent.FinishedImage(index=index, image=image(seed), seed=seed))


async def test_pictures_that_shared_all_its_workers_are_not_given_up_for_a_poisoned_one():
    async with pipeline(generators=4, generator=Sharing) as gateway:
        for worker in gateway.generators:
            worker.close_gates(*range(12))
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 12}, **SKETCHES)):
            events.append(event)
            if len(attempts(events, 1)) == 2 and event.HasField("warning"):
                for worker in gateway.generators:
                    for gate in worker.gates.values():
                        gate.set()
        given_up = [one.image.rpartition("/")[2] for one in warnings(events) if one.given_up]
        assert given_up == ["generate-1"]
        assert len(ready(events)) == 11


async def test_how_many_workers_a_picture_may_cost_can_be_set():
    async with pipeline(generators=4, retry_policy=RetryPolicy(max_workers=2, worker_timeout_s=0)) as gateway:
        for worker in gateway.generators:
            worker.garbage[0] = CUT_SHORT
        events = await collect(gateway, spec(generate={"count": 2}, **SKETCHES))
        assert len(attempts(events, 0)) == 2


async def test_a_picture_that_answers_cannot_be_right_for_takes_no_worker_from_others():
    async with pipeline(generators=3) as gateway:
        for worker in gateway.generators:
            worker.garbage[1] = CUT_SHORT
        await collect(gateway, spec(generate={"count": 2}, **SKETCHES))
        assert len(gateway.pools["generate"].healthy) == 3


async def test_drained_workers_are_not_the_picture_s_fault():
    async with pipeline(generators=5) as gateway:
        for worker in gateway.generators[:4]:
            worker.errors[0] = WorkerEvicted("this worker stopped; try another one")
        events = await collect(gateway, spec(generate={"count": 1}, **SKETCHES))
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_pictures_leave_the_queue_of_a_worker_that_stalled():
    async with pipeline(generators=2, retry_policy=RetryPolicy(stall_timeout_s=3.0)) as gateway:
        first, second = gateway.generators

        async def hang(index, seed):
            position = 0 if index == 0 else index
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=position, num_images=1))
            await asyncio.Event().wait()

        first._script = hang
        events = await collect(gateway, spec(generate={"count": 4}, **SKETCHES))
        assert len(first.requests) == 2
        assert sorted(one.index for one in ready(events)) == [0, 1, 2, 3]
        assert {one.reason for one in warnings(events)} == {"WORKER_STALLED"}


async def test_a_queue_that_does_not_move_for_long_is_left():
    retry_policy = RetryPolicy(queue_timeout_s=0.2)
    async with pipeline(generators=2, retry_policy=retry_policy) as gateway:
        first, second = gateway.generators

        async def wait(index, seed):
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=7, num_images=1))
            await asyncio.Event().wait()

        first._script = wait
        events = await collect(gateway, spec(generate={"count": 1}, **SKETCHES))
        assert attempts(events, 0) == [(first.address, 1), (second.address, 2)]
        assert "the queue of generator" in warnings(events)[0].message


async def test_a_run_waits_for_a_worker_that_takes_the_place_of_a_lost_one():
    async with pipeline(retry_policy=RetryPolicy()) as gateway:
        gateway.generator.close_gates(0)
        other = ScriptedGenerator()
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 1}, **SKETCHES)):
            events.append(event)
            if event.HasField("stage_started") and len(attempts(events, 0)) == 1:
                await gateway.generator.begun[0].wait()
                await gateway.generator.kill()
            if event.HasField("warning"):
                await other.start()
                gateway.pools["generate"].discovery.targets = (Target("127.0.0.1", other.port),)
                await gateway.notice()
        assert "waiting for one" in warnings(events)[0].message
        assert attempts(events, 0)[1] == (other.address, 2)
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
        await other.kill()


async def test_a_model_that_is_gone_is_reported_by_name_and_what_to_do():
    async with pipeline(retry_policy=RetryPolicy(worker_timeout_s=0.1)) as gateway:
        gateway.generator.close_gates(0)
        gateway.generator.failures[0] = StageEvent.ImageFailure(
            index=0, reason="WORKER_EVICTED", message="this worker stopped"
        )
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 2}, **SKETCHES)):
            events.append(event)
            if event.HasField("image_ready"):
                gateway.generator.info.digest = "d2"
                await gateway.notice()
                gateway.generator.gates[0].set()
        assert finished(events).error.reason == "MODEL_GONE"
        assert (
            "no generator has the model that this run began with any more (d1)"
            in finished(events).error.message
        )
