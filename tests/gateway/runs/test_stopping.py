"""A gateway that is asked to stop: what may still finish, what is left, and what callers get."""

import asyncio

import grpc
import pytest

from gateway.runs.manager import RunLimits
from services.errors import NotReady
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, finished, run_finished, spec
from tests.waiting import underway
from triptych.v1.pipeline_pb2 import RunState, StreamRunRequest, WatchRunRequest

SKETCH = {"generate": {"count": 1}, "refine": None, "upscale": None}


async def held_run(gateway, **more):
    """A run whose picture waits for its gate."""
    gateway.generator.close_gates(0)
    run = await gateway.facade.create_run("", spec(**SKETCH), ALL, **more)
    await gateway.generator.begun[0].wait()
    return run.name


async def rest(call):
    """What a stream still has to say; it has been read from before."""
    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    return events


async def test_a_run_may_finish_within_the_grace(gateway):
    name = await held_run(gateway)
    watcher = asyncio.ensure_future(run_finished(gateway, name))
    stopping = await underway(gateway.runs.close(30))
    gateway.generator.gates[0].set()
    assert (await watcher).state == RunState.RUN_STATE_SUCCEEDED
    await stopping


async def test_a_gateway_that_stops_accepts_no_run_and_reports_it_with_a_retry(gateway):
    await held_run(gateway)
    stopping = await underway(gateway.runs.close(30))
    with pytest.raises(NotReady, match="this gateway is going away") as raised:
        await gateway.facade.create_run("", spec(**SKETCH), ALL)
    assert raised.value.retry_after_s == 2.0
    gateway.generator.gates[0].set()
    await stopping


async def test_a_watcher_of_a_run_that_is_left_is_asked_to_come_back(gateway):
    name = await held_run(gateway)
    call = gateway.stub.WatchRun(WatchRunRequest(name=name))
    await call.read()
    await gateway.runs.close()
    with pytest.raises(
        grpc.aio.AioRpcError, match="this gateway is going away; watch the run at another one"
    ):
        await rest(call)
    assert await call.code() == grpc.StatusCode.UNAVAILABLE


async def test_the_work_of_a_run_that_is_left_is_stopped(gateway):
    await held_run(gateway)
    await gateway.runs.close()
    await gateway.generator.stopped[0].wait()
    assert gateway.generator.cancelled == [0]


async def test_a_run_that_waits_for_a_choice_keeps_no_gateway_from_stopping(gateway):
    run = await gateway.facade.create_run("", spec(manual={}), ALL)
    async for event in gateway.facade.watch_run(run.name, ALL):
        if event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
            break
    async with asyncio.timeout(120):
        await gateway.runs.close(3600)


async def test_the_run_of_a_streaming_caller_is_not_cancelled_by_the_gateway_s_stop(tmp_path):
    async with scripted_stages() as stages:
        stages.generators[0].close_gates(0)
        async with gateway_over(stages, tmp_path) as gateway:
            call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(**SKETCH)))
            name = (await call.read()).event.state.run
            await stages.generators[0].begun[0].wait()
        stages.generators[0].gates[0].set()
        async with gateway_over(stages, tmp_path) as gateway:
            assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_caller_who_is_cut_off_while_the_gateway_stops_does_not_take_the_run_along():
    async with pipeline() as gateway:
        gateway.generator.close_gates(0)
        call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(**SKETCH)))
        name = (await call.read()).event.state.run
        await gateway.generator.begun[0].wait()
        watcher = asyncio.ensure_future(run_finished(gateway, name))
        with gateway.facade.attach(name):
            call.cancel()
            stopping = await underway(gateway.runs.close(30))
        gateway.generator.gates[0].set()
        assert (await watcher).state == RunState.RUN_STATE_SUCCEEDED
        await stopping


async def test_a_caller_who_comes_back_within_the_grace_finds_the_run_under_way():
    async with pipeline(bounds=RunLimits(abandon_grace_s=60)) as gateway:
        gateway.generator.close_gates(0)
        first = gateway.stub.StreamRun(StreamRunRequest(request_id="once", spec=spec(**SKETCH)))
        name = (await first.read()).event.state.run
        await gateway.generator.begun[0].wait()
        first.cancel()
        again = gateway.stub.StreamRun(StreamRunRequest(request_id="once", spec=spec(**SKETCH)))
        events = [(await again.read()).event]
        gateway.generator.gates[0].set()
        events += await rest(again)
    assert events[0].state.run == name
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert len(gateway.generator.requests) == 1


async def test_a_watcher_keeps_the_run_of_a_caller_who_went_away():
    async with pipeline() as gateway:
        gateway.generator.close_gates(0)
        first = gateway.stub.StreamRun(StreamRunRequest(spec=spec(**SKETCH)))
        name = (await first.read()).event.state.run
        await gateway.generator.begun[0].wait()
        watcher = gateway.stub.WatchRun(WatchRunRequest(name=name))
        await watcher.read()
        first.cancel()
        gateway.generator.gates[0].set()
        events = await rest(watcher)
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
