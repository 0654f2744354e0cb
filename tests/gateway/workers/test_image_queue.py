"""Pictures that wait at the gateway, so that a worker that joins takes its share of them."""

import pytest

from gateway.access.caller import Caller
from gateway.workers.targets import Target
from services.errors import DeadlineExceeded
from tests.gateway.fake_stage import ScriptedGenerator, gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import Stage

SKETCHES = {"refine": None, "upscale": None}


class OneSlot(ScriptedGenerator):
    """Makes one picture at once, so that it is given two; all of them wait for their gates."""

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.info.limits.num_slots = 1
        self.close_gates(*range(8))

    def open_gates(self) -> None:
        for gate in self.gates.values():
            gate.set()


@pytest.fixture
async def gateway():
    async with pipeline(generator=OneSlot) as running:
        yield running


async def begin(gateway, count, caller=ALL, **more):
    return (
        await gateway.facade.create_run("", spec(generate={"count": count}, **SKETCHES), caller, **more)
    ).name


async def begun(worker, *images):
    """Returns once the worker has begun with these."""
    for index in images:
        await worker.begun[index].wait()


async def waits(gateway, name):
    """Returns once the run has the event that it waits."""
    async for event in gateway.facade.watch_run(name, ALL):
        if event.queued.position:
            return


def indexes(worker):
    return [request.images[0].index for request in worker.requests]


async def places(gateway, name):
    events = [event async for event in gateway.facade.watch_run(name, ALL)]
    return [event.queued for event in events if event.queued.stage == Stage.STAGE_GENERATE]


async def test_a_worker_is_given_the_batch_that_it_makes_and_the_next_one(gateway):
    await begin(gateway, 6)
    await begun(gateway.generator, 0, 1)
    assert gateway.pools["generate"].num_waiting == 4
    assert indexes(gateway.generator) == [0, 1]


async def test_what_waits_goes_on_as_pictures_are_done(gateway):
    name = await begin(gateway, 6)
    await begun(gateway.generator, 0, 1)
    gateway.generator.open_gates()
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED
    assert sorted(indexes(gateway.generator)) == [0, 1, 2, 3, 4, 5]


async def test_a_worker_that_joins_takes_its_share_of_what_waits(gateway):
    name = await begin(gateway, 6)
    await begun(gateway.generator, 0, 1)
    joins = OneSlot()
    await joins.start()
    pool = gateway.pools["generate"]
    pool.discovery.targets += (Target("127.0.0.1", joins.port),)
    await pool.refresh()
    await begun(joins, 2, 3)
    assert indexes(joins) == [2, 3]
    gateway.generator.open_gates()
    joins.open_gates()
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED
    await joins.kill()


async def test_callers_that_wait_take_turns(gateway):
    ann = await begin(gateway, 6, Caller("ann"))
    await begun(gateway.generator, 0, 1)
    bob = await begin(gateway, 1, Caller("bob"))
    await waits(gateway, bob)
    gateway.generator.open_gates()
    await run_finished(gateway, bob)
    await run_finished(gateway, ann)
    assert "bob" in [request.caller for request in gateway.generator.requests[2:4]]


async def test_a_waiting_image_gets_a_place_after_those_at_the_worker(gateway):
    name = await begin(gateway, 4)
    await begun(gateway.generator, 0, 1)
    gateway.generator.open_gates()
    # The run's first picture that waits has one before it, which waits at the worker.
    assert next(one.position for one in await places(gateway, name) if one.position) == 2


async def test_a_picture_that_waits_is_cancelled_at_once(gateway):
    name = await begin(gateway, 3)
    await begun(gateway.generator, 0, 1)
    await gateway.facade.cancel_run(name, ALL, [f"{name}/images/generate-2"])
    gateway.generator.open_gates()
    run = await run_finished(gateway, name)
    assert run.state == RunState.RUN_STATE_SUCCEEDED
    assert sorted(indexes(gateway.generator)) == [0, 1]


async def test_the_pictures_of_a_cancelled_run_leave_the_line(gateway):
    name = await begin(gateway, 6)
    await begun(gateway.generator, 0, 1)
    await gateway.facade.cancel_run(name, ALL)
    assert gateway.pools["generate"].num_waiting == 0
    again = await begin(gateway, 2)
    gateway.generator.open_gates()
    assert (await run_finished(gateway, again)).state == RunState.RUN_STATE_SUCCEEDED


async def test_the_caller_s_deadline_ends_the_wait(gateway):
    name = await begin(gateway, 3, detach=False, timeout_s=0.3)
    with gateway.facade.attach(name):
        run = await run_finished(gateway, name)
    assert run.state == RunState.RUN_STATE_FAILED
    assert run.error.reason == DeadlineExceeded.reason


async def test_pictures_that_waited_for_a_worker_that_is_lost_are_made_by_another(tmp_path):
    async with (
        scripted_stages(generators=2, generator=OneSlot) as stages,
        gateway_over(stages, tmp_path) as gateway,
    ):
        first, second = stages.generators
        name = await begin(gateway, 6)
        await begun(first, 0, 2)
        await begun(second, 1, 3)
        await first.kill()
        second.open_gates()
        assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED
    assert set(indexes(second)) == {0, 1, 2, 3, 4, 5}
