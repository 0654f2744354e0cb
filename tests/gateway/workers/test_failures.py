"""What goes wrong in the stages, and what a run makes of it."""

import asyncio
from dataclasses import replace

import pytest

from gateway.workers.retry_policy import RetryPolicy
from services.errors import DeviceOutOfMemory, InvalidRequest as StageInvalidRequest, QueueFull
from tests.gateway.fake_stage import image, pipeline, png
from tests.gateway.run_fixtures import attempts, collect, finished, ready, spec, warnings
from triptych.client import Busy, CallError, InvalidRequest, NoWorker
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import Stage, StageEvent

SKETCHES = {"refine": None, "upscale": None}
OUT_OF_MEMORY = StageEvent.ImageFailure(index=1, reason="DEVICE_OOM", message="the device has no memory left")


async def until_failure(gateway, asked, after_first=None):
    """The events of a run that fails, and its error; `after_first` is awaited after its first event."""
    events = []

    async def read():
        async for event in gateway.client.stream_run(asked):
            events.append(event)
            if len(events) == 1 and after_first is not None:
                await after_first()

    with pytest.raises(CallError) as raised:
        await read()
    return events, raised.value


async def test_one_image_that_fails_leaves_the_others(gateway):
    gateway.generator.failures[1] = OUT_OF_MEMORY
    events = await collect(gateway, spec(generate={"count": 3}, **SKETCHES))
    assert sorted(one.index for one in ready(events)) == [0, 2]
    assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED
    assert finished(events).error.reason == "DEVICE_OOM"


async def test_a_failed_image_is_reported_by_name_and_reason(gateway):
    gateway.generator.failures[1] = OUT_OF_MEMORY
    reported = warnings(await collect(gateway, spec(**SKETCHES)))
    assert [(one.reason, one.image.rpartition("/")[2]) for one in reported] == [("DEVICE_OOM", "generate-1")]
    assert "the device has no memory left" in reported[0].message


async def test_the_best_of_those_that_did_not_fail_goes_on(gateway):
    gateway.generator.failures[0] = StageEvent.ImageFailure(index=0, reason="DEVICE_OOM", message="no memory")
    events = await collect(gateway, spec())
    assert {one.parent.rpartition("-")[2] for one in ready(events, Stage.STAGE_REFINE)} == {"1"}
    assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED


async def test_a_run_fails_when_every_image_of_a_stage_does(gateway):
    for index in (0, 1):
        gateway.refiner.errors[index] = DeviceOutOfMemory("no memory")
    events, error = await until_failure(gateway, spec())
    assert finished(events).state == RunState.RUN_STATE_FAILED
    assert gateway.upscaler.requests == []
    assert error.reason == "DEVICE_OOM"
    assert error.retry_after_s is None


async def test_a_run_fails_when_nothing_can_be_ranked(gateway):
    gateway.refiner.rank_error = DeviceOutOfMemory("no memory")
    events, error = await until_failure(gateway, spec())
    assert finished(events).error.reason == error.reason == "DEVICE_OOM"
    assert len(ready(events)) == 2


async def test_a_stage_that_refuses_a_setting_names_it_by_the_callers_path(gateway):
    gateway.generator.errors[0] = StageInvalidRequest("settings.top_k", "must be 0 to 5, got 9")
    _, error = await until_failure(gateway, spec(generate={"count": 1}, **SKETCHES))
    assert isinstance(error, InvalidRequest)
    assert error.violations == {"spec.generate.settings.top_k": "must be 0 to 5, got 9"}


async def test_a_bug_in_a_stage_is_not_reported(gateway, caplog):
    gateway.generator.errors[0] = KeyError("secret")
    _, error = await until_failure(gateway, spec(generate={"count": 1}, **SKETCHES))
    assert error.reason == "INTERNAL"
    assert "secret" not in str(error)
    caplog.clear()


async def test_a_bug_in_the_gateway_is_logged_and_not_reported(gateway, caplog):
    gateway.runs._context = replace(gateway.runs._context, pools={})  # what no code of ours does
    events, error = await until_failure(gateway, spec(generate={"count": 1}, **SKETCHES))
    assert finished(events).error.reason == error.reason == "INTERNAL"
    assert "KeyError" not in str(error)
    assert "KeyError" in caplog.text


async def test_a_broken_worker_s_images_are_made_by_another():
    async with pipeline(generators=2) as gateway:
        first, second = gateway.generators
        first.close_gates(0, 1)
        second.close_gates(0, 1)
        events = []
        async for event in gateway.client.stream_run(spec(**SKETCHES)):
            events.append(event)
            if len(events) == 1:
                for index in (0, 1):
                    await _either(first, second, index)
                await first.kill()
                for gate in second.gates.values():
                    gate.set()
        lost = first.requests[0].images[0].index
        assert attempts(events, lost) == [(first.address, 1), (second.address, 2)]
        assert {one.index: one.seed for one in ready(events)} == {0: 100, 1: 101}
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
        assert [one.reason for one in warnings(events)] == ["WORKER_LOST"]


async def _either(first, second, index):
    """Waits until one of the two has begun with the image."""
    waits = [asyncio.ensure_future(worker.begun[index].wait()) for worker in (first, second)]
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()


async def test_a_lost_worker_without_another_fails_with_a_retry(gateway):
    gateway.generator.close_gates(0)

    async def kill():
        await gateway.generator.begun[0].wait()
        await gateway.generator.kill()

    _, error = await until_failure(gateway, spec(generate={"count": 1}, **SKETCHES), kill)
    assert (error.reason, error.retry_after_s) == ("WORKER_LOST", 1.0)
    assert gateway.generator.address in str(error)


async def test_a_picture_that_was_delivered_is_kept_when_its_worker_dies(gateway):
    gateway.generator.close_gates(1)
    events = []
    async for event in gateway.client.stream_run(spec(**SKETCHES)):
        events.append(event)
        if event.HasField("image_ready"):
            await gateway.generator.kill()
    assert [one.index for one in ready(events)] == [0]
    assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED


async def test_a_worker_that_falls_silent_is_given_up():
    async with pipeline(generators=2, retry_policy=RetryPolicy(stall_timeout_s=3.0)) as gateway:
        first, second = gateway.generators
        first.close_gates(0)
        events = await collect(gateway, spec(generate={"count": 1}, **SKETCHES))
        assert [one.reason for one in warnings(events)] == ["WORKER_STALLED"]
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
        assert (first.cancelled, second.finished) == ([0], [0])


async def test_an_image_that_waits_in_a_queue_is_not_given_up():
    async with pipeline(retry_policy=RetryPolicy(stall_timeout_s=3.0)) as gateway:
        gateway.generator.garbage[0] = []
        reached = gateway.generator.begun[0]

        async def queued(index, seed):
            reached.set()
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=3, num_images=1))
            await gateway.generator.gates[0].wait()
            yield StageEvent(image=StageEvent.FinishedImage(index=index, image=image(seed), seed=seed))

        gateway.generator._script = queued
        gateway.generator.close_gates(0)
        events = []
        async for event in gateway.client.stream_run(spec(generate={"count": 1}, **SKETCHES)):
            events.append(event)
            if event.HasField("queued") and event.queued.position == 3:
                with pytest.raises(CallError):  # a call that outlasts the patience with a silent worker
                    [_ async for _ in gateway.client.watch_run(events[0].state.run, timeout_s=4.0)]
                gateway.generator.gates[0].set()
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [StageEvent()],
        [StageEvent(progress=StageEvent.Progress(index=5, step=1, num_steps=2))],
        [StageEvent(image=StageEvent.FinishedImage(index=0, seed=100))],
        [StageEvent(image=StageEvent.FinishedImage(index=0, seed=7, image=image(7)))],
    ],
    ids=["nothing", "an empty event", "another image", "no data", "another seed"],
)
async def test_a_worker_that_answers_garbage_is_replaced(answer):
    async with pipeline(generators=2) as gateway:
        gateway.generators[0].garbage[0] = answer
        events = await collect(gateway, spec(generate={"count": 1}, **SKETCHES))
        assert [one.reason for one in warnings(events)] == ["WORKER_BROKEN"]
        assert ready(events)[0].data == png(100)


async def test_a_full_queue_is_waited_for(gateway):
    gateway.generator.errors[0] = QueueFull("128 images are waiting", retry_after_s=0.05)
    events = []
    async for event in gateway.client.stream_run(spec(generate={"count": 1}, **SKETCHES)):
        events.append(event)
        if event.HasField("stage_started"):
            await gateway.generator.begun[0].wait()
            gateway.generator.errors.clear()
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_waiting_for_room_is_one_attempt(gateway):
    gateway.generator.errors[0] = QueueFull("128 images are waiting", retry_after_s=0.05)
    events = []
    async for event in gateway.client.stream_run(spec(generate={"count": 1}, **SKETCHES)):
        events.append(event)
        if event.HasField("stage_started"):
            while len(gateway.generator.requests) < 3:
                await gateway.client.list_models()
            gateway.generator.errors.clear()
    assert attempts(events, 0) == [(gateway.generator.address, 1)]


async def test_where_one_queue_is_full_another_worker_is_asked_at_once():
    async with pipeline(generators=2) as gateway:
        full, other = gateway.generators
        full.errors[0] = QueueFull("128 images are waiting", retry_after_s=3600.0)
        events = await collect(gateway, spec(generate={"count": 1}, **SKETCHES))
        assert attempts(events, 0) == [(full.address, 1), (other.address, 2)]
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_queue_that_stays_full_fails_with_a_retry(gateway):
    gateway.generator.errors[0] = QueueFull("128 images are waiting", retry_after_s=3600.0)
    _, error = await until_failure(gateway, spec(generate={"count": 1}, **SKETCHES))
    assert isinstance(error, Busy)
    assert error.retry_after_s == 3600.0


async def test_a_stage_without_a_worker_explains_who_was_tried_and_what_to_do():
    async with pipeline(upscalers=1) as gateway:
        address = gateway.upscaler.address
        await gateway.upscaler.kill()
        await gateway.notice()
        with pytest.raises(NoWorker) as raised:
            await collect(gateway, spec())
        assert f"no upscaler can be given work: tried {address} (nobody answers there)" in str(raised.value)
        assert "triptych serve upscaler" in str(raised.value)
        assert raised.value.retry_after_s == 5.0
        assert gateway.generator.requests == []


async def test_a_stage_that_nobody_was_named_for_explains_how_to_name_one():
    async with pipeline(refiners=0) as gateway:
        with pytest.raises(NoWorker, match="no refiner is known to the gateway: start one with"):
            await collect(gateway, spec())


async def test_ranking_without_a_refiner_explains_how_to_do_without():
    async with pipeline(refiners=0) as gateway:
        with pytest.raises(NoWorker, match="set spec.automatic.top_k_after_generate to 0"):
            await collect(gateway, spec(refine=None))


async def test_a_stage_that_is_left_out_needs_no_worker():
    async with pipeline(refiners=0, upscalers=0) as gateway:
        events = await collect(gateway, spec(**SKETCHES))
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
