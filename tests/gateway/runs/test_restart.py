"""A gateway that ends, and what the next one on the same journal makes of its runs."""

from collections.abc import AsyncIterator

import pytest

from gateway.runs.manager import RunLimits
from gateway.workers.retry_policy import RetryPolicy
from services.errors import AlreadyExists, NotFound
from tests.gateway.fake_stage import Stages, gateway_over, image, png, scripted_stages
from tests.gateway.run_fixtures import ALL, collect, finished, lasting, ready, run_finished, spec, whole_log
from triptych.v1.pipeline_pb2 import RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import Stage

SKETCHES = {"refine": None, "upscale": None}
Selection = SelectImagesRequest.Selection


@pytest.fixture
async def stages() -> AsyncIterator[Stages]:
    async with scripted_stages() as running:
        yield running


async def until(gateway, name, kind, number=1):
    """The events up to the `number`-th of that kind."""
    events = []
    async for event in gateway.facade.watch_run(name, ALL):
        events.append(event)
        if [one.WhichOneof("kind") for one in events].count(kind) == number:
            break
    return events


async def stream(gateway):
    """A run that lives for its caller."""
    return await gateway.facade.create_run("once", spec(**SKETCHES), ALL, detach=False)


async def test_a_finished_run_is_there_after_a_restart(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        before = lasting(await collect(gateway, spec()))
        name = before[0].state.run
        run = await gateway.client.get_run(name)
    async with gateway_over(stages, tmp_path) as gateway:
        assert await whole_log(gateway, name) == before
        assert await gateway.client.get_run(name) == run


async def test_the_pictures_of_a_finished_run_are_there_after_a_restart(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        made = ready(await collect(gateway, spec()))
    async with gateway_over(stages, tmp_path) as gateway:
        assert [await gateway.client.download_image(one.name) for one in made] == [one.data for one in made]


async def test_a_run_goes_on_after_a_restart_and_keeps_what_is_finished(stages, tmp_path):
    stages.generators[0].close_gates(1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        before = lasting(await until(gateway, run.name, "image_ready"))
    stages.generators[0].gates[1].set()
    async with gateway_over(stages, tmp_path) as gateway:
        after = lasting(await whole_log(gateway, run.name))
    assert after[: len(before)] == before
    assert finished(after).state == RunState.RUN_STATE_SUCCEEDED
    asked = [request.images[0].index for request in stages.generators[0].requests]
    assert asked == [0, 1, 1]


async def test_a_run_that_goes_on_makes_the_pictures_that_it_would_have_made(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        whole = {one.name.rpartition("/")[2]: one.sha256 for one in ready(await collect(gateway, spec()))}
    stages.refiners[0].close_gates(1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        await stages.refiners[0].begun[1].wait()
    stages.refiners[0].gates[1].set()
    async with gateway_over(stages, tmp_path) as gateway:
        resumed = await run_finished(gateway, run.name)
    assert {one.name.rpartition("/")[2]: one.sha256 for one in resumed.images} == whole


async def test_the_numbers_of_a_run_go_on_without_a_gap(stages, tmp_path):
    stages.generators[0].num_previews = 5
    stages.generators[0].close_gates(0, 1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        seen = await until(gateway, run.name, "preview", 3)
    for gate in stages.generators[0].gates.values():
        gate.set()
    async with gateway_over(stages, tmp_path) as gateway:
        await run_finished(gateway, run.name)
        logged = [event.sequence for event in await gateway.runs.journal.reader.read_log(run.name)]
        rest = [
            event async for event in gateway.facade.watch_run(run.name, ALL, after_sequence=seen[-1].sequence)
        ]
    assert logged == list(range(1, len(logged) + 1))
    assert rest[0].sequence > seen[-1].sequence


async def test_a_run_of_pictures_goes_on_from_them(stages, tmp_path):
    stages.refiners[0].close_gates(0)
    asked = spec(generate=None)
    asked.init_images.append(image(7))
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", asked, ALL)
        await stages.refiners[0].begun[0].wait()
    stages.refiners[0].gates[0].set()
    async with gateway_over(stages, tmp_path) as gateway:
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED
    assert {request.init_image.data for request in stages.refiners[0].requests} == {png(7)}


async def test_a_ranking_that_was_reported_is_not_made_again(stages, tmp_path):
    stages.refiners[0].close_gates(0, 1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        await until(gateway, run.name, "ranked")
    stages.refiners[0].scores = {101: 1.0}
    for gate in stages.refiners[0].gates.values():
        gate.set()
    async with gateway_over(stages, tmp_path) as gateway:
        after = await whole_log(gateway, run.name)
    assert [event.ranked.stage for event in after if event.HasField("ranked")] == [1, 2]
    assert {one.parent.rpartition("-")[2] for one in ready(after, Stage.STAGE_REFINE)} == {"0"}


async def test_an_image_that_was_cancelled_stays_so(stages, tmp_path):
    stages.generators[0].close_gates(0, 1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
        await gateway.facade.cancel_run(run.name, ALL, [f"{run.name}/images/generate-1"])
    for gate in stages.generators[0].gates.values():
        gate.set()
    async with gateway_over(stages, tmp_path) as gateway:
        made = (await run_finished(gateway, run.name)).images
    assert [one.index for one in made] == [0]


async def test_a_run_that_waits_for_a_choice_waits_after_a_restart(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(manual={}), ALL)
        await until(gateway, run.name, "selection_required")
    async with gateway_over(stages, tmp_path) as gateway:
        waiting = await gateway.client.get_run(run.name)
        assert waiting.state == RunState.RUN_STATE_AWAITING_SELECTION
        chosen = [Selection(image=f"{run.name}/images/generate-0", refine={"count": 1})]
        await gateway.facade.select_images("", run.name, chosen, ALL)
        events = await until(gateway, run.name, "selection_required", 2)
    assert [one.name.rpartition("/")[2] for one in ready(events, Stage.STAGE_REFINE)] == ["refine-0"]


async def test_a_selection_that_was_accepted_is_carried_out_after_a_restart(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        name = (await collect(gateway, spec(**SKETCHES)))[0].state.run
        stages.upscalers[0].close_gates(0)
        await gateway.facade.select_images(
            "", name, [Selection(image=f"{name}/images/generate-0", upscale={})], ALL
        )
        await stages.upscalers[0].begun[0].wait()
    stages.upscalers[0].gates[0].set()
    async with gateway_over(stages, tmp_path) as gateway:
        run = await run_finished(gateway, name)
    assert "upscale-0" in {one.name.rpartition("/")[2] for one in run.images}
    assert run.state == RunState.RUN_STATE_SUCCEEDED


async def test_a_request_id_makes_one_run_over_a_restart(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        first = await gateway.facade.create_run("once", spec(**SKETCHES), ALL)
        await run_finished(gateway, first.name)
    async with gateway_over(stages, tmp_path) as gateway:
        again = await gateway.facade.create_run("once", spec(**SKETCHES), ALL)
        with pytest.raises(AlreadyExists, match=f"request_id 'once' made {first.name}"):
            await gateway.facade.create_run("once", spec(), ALL)
    assert again.name == first.name


async def test_a_deleted_run_stays_so(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        name = (await collect(gateway, spec(**SKETCHES)))[0].state.run
        await gateway.facade.delete_run(name, ALL)
    async with gateway_over(stages, tmp_path) as gateway:
        with pytest.raises(NotFound):
            await gateway.facade.get_run(name, ALL)


async def test_a_run_that_goes_on_waits_for_its_workers(stages, tmp_path):
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": 1}), ALL)
        await stages.generators[0].begun[0].wait()
    retry_policy = RetryPolicy(worker_timeout_s=30.0)
    async with (
        scripted_stages(generators=0) as none,
        gateway_over(none, tmp_path, retry_policy=retry_policy) as gateway,
    ):
        assert (await gateway.facade.get_run(run.name, ALL)).state == RunState.RUN_STATE_RUNNING
    stages.generators[0].gates[0].set()
    async with gateway_over(stages, tmp_path) as gateway:
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_caller_who_streamed_a_run_can_come_back_after_a_restart(stages, tmp_path):
    bounds = RunLimits(abandon_grace_s=30)
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path, bounds=bounds) as gateway:
        run = await stream(gateway)
        await stages.generators[0].begun[0].wait()
    stages.generators[0].gates[0].set()
    async with gateway_over(stages, tmp_path, bounds=bounds) as gateway:
        again = await stream(gateway)
        with gateway.facade.attach(again.name):
            events = await whole_log(gateway, again.name)
    assert again.name == run.name
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_run_whose_caller_does_not_come_back_after_a_restart_is_cancelled(
    stages, tmp_path, monkeypatch
):
    stages.generators[0].close_gates(0)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await stream(gateway)
        await stages.generators[0].begun[0].wait()
    monkeypatch.setattr("gateway.runs.abandonment.ARRIVAL_S", 0)
    async with gateway_over(stages, tmp_path) as gateway:
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_CANCELLED
