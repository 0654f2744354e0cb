"""Cancelling: by going away, by CancelRun, whole or in part."""

import pytest

from gateway.planning.plan import make_plan
from gateway.runs.admission import Admission, AdmissionLimits
from gateway.runs.image_tasks import RunContext
from gateway.runs.memory_budget import WeightedSemaphore
from gateway.runs.recorder import RunRecorder, first_event
from gateway.runs.run import ActiveRun
from gateway.workers.retry_policy import RetryPolicy
from tests.gateway.run_fixtures import collect, finished, ready, run_finished, spec, warnings
from triptych.client import CallError, InvalidRequest, NotFound
from triptych.v1.pipeline_pb2 import RunSpec, RunState, StreamRunRequest
from triptych.v1.stage_pb2 import Stage

FLOWING = {"top_k_after_generate": 0, "top_k_after_refine": 0}


def hold_every_stage(gateway):
    """Sketch 1, variation 1 and picture 0 hang while the others are done."""
    gateway.generator.close_gates(1)
    gateway.refiner.close_gates(1)
    gateway.upscaler.close_gates(0)


async def all_three_at_work(gateway):
    for stage, index in ((gateway.generator, 1), (gateway.refiner, 1), (gateway.upscaler, 0)):
        await stage.begun[index].wait()


async def all_three_stopped(gateway):
    for stage, index in ((gateway.generator, 1), (gateway.refiner, 1), (gateway.upscaler, 0)):
        await stage.stopped[index].wait()
        assert index in stage.cancelled


async def test_a_caller_who_cancels_stops_the_work_of_all_three_stages(gateway):
    hold_every_stage(gateway)
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(automatic=FLOWING)))
    name = (await call.read()).event.state.run
    await all_three_at_work(gateway)
    call.cancel()
    await all_three_stopped(gateway)
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_CANCELLED


async def test_closing_the_iterator_of_the_client_cancels_the_run(gateway):
    hold_every_stage(gateway)
    events = gateway.client.stream_run(spec(automatic=FLOWING))
    await anext(events)
    await all_three_at_work(gateway)
    await events.aclose()
    await all_three_stopped(gateway)


async def test_a_caller_whose_connection_is_lost_stops_the_work(gateway):
    hold_every_stage(gateway)
    events = gateway.client.stream_run(spec(automatic=FLOWING))
    await anext(events)
    await all_three_at_work(gateway)
    await gateway.client.__aexit__(None, None, None)
    await all_three_stopped(gateway)


async def test_a_deadline_stops_the_work(gateway):
    gateway.generator.close_gates(0)
    with pytest.raises(CallError) as raised:
        await collect(gateway, spec(generate={"count": 1}), timeout_s=0.3)
    assert raised.value.reason == "DEADLINE_EXCEEDED"
    # On a busy machine it may have passed before the work began.
    if gateway.generator.begun[0].is_set():
        await gateway.generator.stopped[0].wait()


async def test_a_reader_who_does_not_read_can_still_cancel(gateway):
    gateway.generator.preview_bytes = 2**20
    gateway.generator.num_previews = 20
    gateway.generator.close_gates(0)
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(generate={"count": 1})))
    await gateway.generator.begun[0].wait()
    call.cancel()
    await gateway.generator.stopped[0].wait()


async def test_a_detached_run_outlives_its_caller(gateway):
    gateway.generator.close_gates(0)
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(), detach=True))
    name = (await call.read()).event.state.run
    await gateway.generator.begun[0].wait()
    call.cancel()
    gateway.generator.gates[0].set()
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_run_lives_while_one_of_its_two_callers_stays(gateway):
    gateway.generator.close_gates(0)
    first = gateway.stub.StreamRun(StreamRunRequest(request_id="twice", spec=spec()))
    second = gateway.stub.StreamRun(StreamRunRequest(request_id="twice", spec=spec()))
    name = (await first.read()).event.state.run
    assert (await second.read()).event.state.run == name
    first.cancel()
    await gateway.generator.begun[0].wait()
    gateway.generator.gates[0].set()
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_cancel_run_stops_it_and_reports_it_to_its_readers(gateway):
    hold_every_stage(gateway)
    events = []
    async for event in gateway.client.stream_run(spec(automatic=FLOWING)):
        events.append(event)
        if len(events) == 1:
            await all_three_at_work(gateway)
            run = await gateway.client.cancel_run(event.state.run)
            assert run.state == RunState.RUN_STATE_CANCELLED
    assert finished(events).state == RunState.RUN_STATE_CANCELLED
    await all_three_stopped(gateway)


async def test_cancelling_twice_changes_nothing(gateway):
    gateway.generator.close_gates(0)
    events = gateway.client.stream_run(spec())
    name = (await anext(events)).state.run
    first = await gateway.client.cancel_run(name)
    assert await gateway.client.cancel_run(name) == first
    await events.aclose()


async def test_cancelling_a_finished_run_changes_nothing(gateway):
    name = (await collect(gateway, spec()))[0].state.run
    assert (await gateway.client.cancel_run(name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_cancelling_one_image_leaves_the_others(gateway):
    gateway.generator.close_gates(0, 1, 2)
    events = []
    async for event in gateway.client.stream_run(spec(generate={"count": 3}, refine=None, upscale=None)):
        events.append(event)
        if len(events) == 1:
            await gateway.generator.begun[1].wait()
            await gateway.client.cancel_run(event.state.run, [f"{event.state.run}/images/generate-1"])
            await gateway.generator.stopped[1].wait()
            for gate in gateway.generator.gates.values():
                gate.set()
    assert sorted(one.index for one in ready(events)) == [0, 2]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert [one.reason for one in warnings(events)] == ["CANCELLED"]


async def test_an_image_can_be_cancelled_before_it_is_begun(gateway):
    gateway.generator.close_gates(0, 1)
    events = []
    async for event in gateway.client.stream_run(spec(upscale=None)):
        events.append(event)
        if len(events) == 1:
            await gateway.generator.begun[0].wait()
            await gateway.client.cancel_run(event.state.run, [f"{event.state.run}/images/refine-0"])
            gateway.generator.gates[0].set()
            gateway.generator.gates[1].set()
    assert [one.index for one in ready(events, Stage.STAGE_REFINE)] == [1]
    assert [request.images[0].index for request in gateway.refiner.requests] == [1]


async def test_cancelling_what_a_finished_run_never_made_changes_nothing(gateway):
    gateway.generator.close_gates(0)
    events = gateway.client.stream_run(spec())
    name = (await anext(events)).state.run
    for _ in range(2):
        run = await gateway.client.cancel_run(name)
        assert await gateway.client.cancel_run(name, [f"{name}/images/generate-1"]) == run
    await events.aclose()


async def test_cancelling_a_finished_image_changes_nothing(gateway):
    name = (await collect(gateway, spec()))[0].state.run
    run = await gateway.client.cancel_run(name, [f"{name}/images/generate-0"])
    assert run.state == RunState.RUN_STATE_SUCCEEDED


async def test_a_run_whose_images_are_all_cancelled_one_by_one_is_cancelled(gateway):
    gateway.generator.close_gates(0)
    events = []
    async for event in gateway.client.stream_run(spec(generate={"count": 1}, refine=None, upscale=None)):
        events.append(event)
        if len(events) == 1:
            await gateway.generator.begun[0].wait()
            await gateway.client.cancel_run(event.state.run, [f"{event.state.run}/images/generate-0"])
    assert finished(events).state == RunState.RUN_STATE_CANCELLED


async def test_cancelling_an_image_that_the_run_lacks_names_it(gateway):
    name = (await collect(gateway, spec()))[0].state.run
    with pytest.raises(InvalidRequest, match=r"images\[0\]: must be an image of runs/"):
        await gateway.client.cancel_run(name, [f"{name}/images/generate-2"])


async def test_cancelling_a_run_that_is_not_there_is_not_found(gateway):
    with pytest.raises(NotFound, match="there is no run 'runs/none' here"):
        await gateway.client.cancel_run("runs/none")


async def test_a_run_cancelled_before_its_first_step_ends(gateway):
    plan = await make_plan(RunSpec(prompt="x", generate={}), gateway.pools)
    first = first_event("runs/1", plan.spec, plan.models)
    record = RunRecorder([first], lambda run, event: run.log.publish(event.sequence), gateway.runs.store)

    context = RunContext(gateway.pools, RetryPolicy(), Admission(AdmissionLimits()), WeightedSemaphore(1))
    run = ActiveRun(record, plan, context, caller="me", is_detached=True, on_idle=lambda _: None)
    run.cancel()
    await run.wait()
    assert record.run.state == RunState.RUN_STATE_CANCELLED
    assert gateway.generator.requests == []
