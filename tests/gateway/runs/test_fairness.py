"""Runs that wait for their turn, as their callers see it."""

import pytest

from gateway.access.caller import Caller, CallerLimits
from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from services.errors import InvalidRequest, QueueFull, RateLimited
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, collect, kinds, ready, run_finished, spec, whole_log
from triptych.v1.pipeline_pb2 import RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import Stage, StageEvent

SKETCHES = {"refine": None, "upscale": None}
ANN = Caller("ann")


def one_at_a_time(**more):
    return RunLimits(room=AdmissionLimits(max_running=1, **more), abandon_grace_s=0)


def places(events, stage=Stage.STAGE_UNSPECIFIED):
    reported = [event.queued for event in events if event.HasField("queued")]
    return [one.position for one in reported if one.stage == stage]


async def begin(gateway, caller=ANN, **more):
    return (await gateway.facade.create_run("", spec(**{**SKETCHES, **more}), caller)).name


async def test_a_run_waits_for_its_turn_and_is_given_its_place():
    async with pipeline(bounds=one_at_a_time()) as gateway:
        gateway.generator.close_gates(0)
        first = await begin(gateway)
        second = await begin(gateway)
        run = await gateway.facade.get_run(second, ALL)
        assert run.state == RunState.RUN_STATE_QUEUED
        gateway.generator.gates[0].set()
        await run_finished(gateway, first)
        await run_finished(gateway, second)
        events = await whole_log(gateway, second)
        assert kinds(events)[:4] == ["state", "queued", "queued", "state"]
        assert places(events) == [1, 0]
        assert ready(events)


async def test_a_run_with_room_is_given_no_place(gateway):
    assert places(await collect(gateway, spec(**SKETCHES))) == []


async def test_the_first_waits_are_not_estimated_and_later_ones_are():
    async with pipeline(bounds=one_at_a_time()) as gateway:
        gateway.generator.close_gates(0)
        names = [await begin(gateway) for _ in range(4)]
        gateway.generator.gates[0].set()
        for name in names[:3]:
            await run_finished(gateway, name)
        gateway.generator.close_gates(0)
        names += [await begin(gateway) for _ in range(2)]
        gateway.generator.gates[0].set()
        estimates = []
        for name in names:
            await run_finished(gateway, name)
            reported = [event.queued for event in await whole_log(gateway, name) if event.HasField("queued")]
            estimates += [one.HasField("estimated_wait") for one in reported if one.position]
        assert estimates[0] is False
        assert estimates[-1] is True


async def test_a_run_can_be_cancelled_while_it_waits():
    async with pipeline(bounds=one_at_a_time()) as gateway:
        gateway.generator.close_gates(0)
        await begin(gateway)
        second = await begin(gateway)
        run = await gateway.facade.cancel_run(second, ALL)
        assert run.state == RunState.RUN_STATE_CANCELLED
        assert len(gateway.generator.requests) <= 2


async def test_a_finished_run_waits_for_its_turn_again_when_images_are_selected():
    async with pipeline(bounds=one_at_a_time()) as gateway:
        name = await begin(gateway)
        await run_finished(gateway, name)
        gateway.generator.close_gates(0)
        await begin(gateway)
        selection = SelectImagesRequest.Selection(image=f"{name}/images/generate-0", upscale={})
        run = await gateway.facade.select_images("", name, [selection], ANN)
        assert run.state == RunState.RUN_STATE_QUEUED
        gateway.generator.gates[0].set()
        assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_selection_that_cannot_even_wait_is_refused_and_leaves_the_run_as_it_was():
    async with pipeline(bounds=one_at_a_time(max_queued=0)) as gateway:
        name = await begin(gateway)
        before = await run_finished(gateway, name)
        gateway.generator.close_gates(0)
        await begin(gateway)
        selection = SelectImagesRequest.Selection(image=f"{name}/images/generate-0", upscale={})
        with pytest.raises(QueueFull):
            await gateway.facade.select_images("", name, [selection], ANN)
        assert await gateway.facade.get_run(name, ALL) == before


async def test_a_run_that_waits_for_a_choice_leaves_its_place_to_others():
    async with pipeline(bounds=one_at_a_time(max_queued=0)) as gateway:
        name = await begin(gateway, manual={}, refine={})
        async for event in gateway.facade.watch_run(name, ALL):
            if event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
                break
        assert (await run_finished(gateway, await begin(gateway))).state == RunState.RUN_STATE_SUCCEEDED


async def test_runs_that_waited_wait_after_a_restart_and_none_is_refused(tmp_path):
    async with scripted_stages() as stages:
        stages.generators[0].close_gates(0)
        async with gateway_over(stages, tmp_path, bounds=one_at_a_time()) as gateway:
            names = [await begin(gateway) for _ in range(3)]
        stages.generators[0].gates[0].set()
        async with gateway_over(stages, tmp_path, bounds=one_at_a_time(max_queued=0)) as gateway:
            states = {(await run_finished(gateway, name)).state for name in names}
        assert states == {RunState.RUN_STATE_SUCCEEDED}


async def test_a_caller_s_own_limits_hold():
    limited = Caller("ann", limits=CallerLimits(max_running_runs=1, max_queued_runs=1))
    async with pipeline() as gateway:
        gateway.generator.close_gates(0)
        for _ in range(2):
            await begin(gateway, limited)
        with pytest.raises(RateLimited):
            await begin(gateway, limited)
        bob = await begin(gateway, Caller("bob"))
        gateway.generator.gates[0].set()
        assert places(await whole_log(gateway, bob)) == []


async def test_a_caller_may_be_allowed_few_pictures_of_a_run(gateway):
    limited = Caller("ann", limits=CallerLimits(max_images_per_run=3))
    with pytest.raises(InvalidRequest, match="the run makes 4 pictures in all, and you may have 3") as raised:
        await begin(gateway, limited, refine={"count": 2})
    assert raised.value.field == "spec.generate"
    assert gateway.generator.requests == []


async def test_a_caller_s_pictures_of_a_run_count_those_that_are_selected(gateway):
    limited = Caller("ann", limits=CallerLimits(max_images_per_run=3))
    name = await begin(gateway, limited)
    await run_finished(gateway, name)
    selection = SelectImagesRequest.Selection(image=f"{name}/images/generate-0", refine={"count": 2})
    with pytest.raises(InvalidRequest, match="would have 4 pictures in all, and you may have 3"):
        await gateway.facade.select_images("", name, [selection], limited)


async def test_the_wait_in_a_worker_s_queue_is_measured_as_it_moves(gateway):
    async def move(index, seed):
        for position in (4, 3, 2):
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=position, num_images=1))
        await gateway.generator.gates[0].wait()
        yield StageEvent(
            failure=StageEvent.ImageFailure(index=index, reason="DEVICE_OOM", message="no memory")
        )

    gateway.generator._script = move
    events = await whole_log(gateway, await begin(gateway, generate={"count": 1}))
    reported = [event.queued for event in events if event.queued.stage == Stage.STAGE_GENERATE]
    assert [(one.position, one.HasField("estimated_wait")) for one in reported] == [
        (4, False),
        (3, True),
        (2, True),
        (0, False),
    ]


async def test_pictures_of_all_runs_share_the_memory():
    bounds = RunLimits(max_bytes_under_way=1, abandon_grace_s=0)
    async with pipeline(bounds=bounds) as gateway:
        gateway.generator.close_gates(0, 1)
        names = [await begin(gateway) for _ in range(2)]
        await gateway.generator.begun[0].wait()
        assert len(gateway.generator.requests) == 1
        for gate in gateway.generator.gates.values():
            gate.set()
        states = {(await run_finished(gateway, name)).state for name in names}
        assert states == {RunState.RUN_STATE_SUCCEEDED}
