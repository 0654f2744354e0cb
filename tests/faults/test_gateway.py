"""The gateway is killed, stopped or asked to end, at each kind of event; everything goes on where it was."""

import asyncio
import signal
import time

import pytest
import pytest_asyncio

from tests.faults.conftest import mended
from tests.faults.processes import WORKERS, cluster
from tests.faults.run_observer import check_log, check_whole, ready, spec
from tests.faults.stage_process import NUM_STEPS
from triptych.v1 import pipeline_pb2
from triptych.v1.pipeline_pb2 import Event, RunState
from triptych.v1.stage_pb2 import STAGE_GENERATE, STAGE_REFINE, STAGE_UPSCALE

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

STAGES = {"generator": STAGE_GENERATE, "refiner": STAGE_REFINE, "upscaler": STAGE_UPSCALE}
SEEN = {"first": 1, "middle": NUM_STEPS // 2, "last": NUM_STEPS - 1}


def is_of(event: Event, kind: str, stage: str) -> bool:
    if kind == "preview" and is_of(event, "image_ready", stage):
        # A watcher who is late is shown no previews of what is finished: then the picture is the moment.
        return True
    if event.WhichOneof("kind") != kind:
        return False
    reported = getattr(event, kind)
    return (reported.image.stage if kind == "image_ready" else reported.stage) == STAGES[stage]


def moments() -> dict[str, object]:
    """Every kind of event, in each stage, and of progress the first, a middle and the last step."""
    found: dict[str, object] = {
        "queued": lambda event: event.HasField("state") and event.state.state == RunState.RUN_STATE_QUEUED,
        "running": lambda event: event.HasField("state") and event.state.state == RunState.RUN_STATE_RUNNING,
        "finished": lambda event: event.HasField("finished"),
    }
    for stage in WORKERS:
        for kind in ("stage_started", "preview", "image_ready", "timing"):
            found[f"{stage}-{kind}"] = lambda event, kind=kind, stage=stage: is_of(event, kind, stage)
        for name, step in SEEN.items():
            found[f"{stage}-progress-{name}"] = lambda event, stage=stage, step=step: (
                is_of(event, "progress", stage) and event.progress.step == step
            )
    return found


MOMENTS = moments()
LIGHT = {"generator-image_ready", "refiner-progress-middle"}


def every_moment(light=()):
    return pytest.mark.parametrize(
        "moment", [pytest.param(one, marks=() if one in light else pytest.mark.faults) for one in MOMENTS]
    )


@every_moment(LIGHT)
async def test_killed(scene, row, moment):
    asked = spec()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await watcher.sees(MOMENTS[moment])
    await scene.cluster.gateway.kill()
    seen = watcher.last_sequence
    await scene.cluster.gateway.start()
    await watcher.finished()
    late = scene.watch(name)
    await late.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    row(f"killed after event {seen} of {log[-1].sequence}, {watcher.num_connections} connections")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(tmp_path_factory):
    """A gateway that has no time to finish when it is asked to end."""
    async with cluster(tmp_path_factory.mktemp("hasty"), gateway_options=["--grace", "0"]) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def hasty_scene(hasty):
    async with mended(hasty) as made:
        yield made


@pytest.mark.faults
@every_moment()
async def test_asked_to_end_at_once(hasty_scene, row, moment):
    await told_to_end(hasty_scene, row, moment)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["queued", "refiner-progress-middle", "upscaler-image_ready"])
async def test_asked_to_end(scene, row, moment):
    await told_to_end(scene, row, moment)


async def told_to_end(scene, row, moment):
    asked = spec()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await watcher.sees(MOMENTS[moment])
    scene.cluster.gateway.send(signal.SIGTERM)
    assert await scene.cluster.gateway.ended() == 0
    seen = watcher.last_sequence
    await scene.cluster.gateway.start()
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    row(f"ended with 0 after event {seen} of {log[-1].sequence}")


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [2, 12])
async def test_stopped_for_a_while(scene, row, seconds):
    victim = scene.cluster.workers["refiner"][0]
    victim.forget_holding()
    await victim.order(hold_at=3)
    asked = spec()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await victim.heard("holding")
    scene.cluster.gateway.send(signal.SIGSTOP)
    await victim.order(go=True)
    await asyncio.sleep(seconds)
    scene.cluster.gateway.send(signal.SIGCONT)
    await watcher.finished()
    await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    row(f"stood still for {seconds} s")


@every_moment()
async def test_killed_with_ranking(scene, row, moment):
    """The best of each stage go on: what was ranked is not ranked otherwise after a restart."""
    asked = spec(images=3, top_k=1)
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await watcher.sees(MOMENTS[moment])
    await scene.cluster.gateway.kill()
    await scene.cluster.gateway.start()
    await watcher.finished()
    log = await check_log(scene.cluster.address, name, [watcher])
    assert log[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    assert len(ready(log)) == 3 + 3 + 1
    assert [event.ranked.stage for event in log if event.HasField("ranked")] == [STAGE_GENERATE, STAGE_REFINE]
    row(f"{len(log)} events, {watcher.num_connections} connections")


@pytest.mark.faults
@pytest.mark.parametrize("when", ["ranking", "ranked"])
async def test_killed_around_ranking(scene, row, when):
    held = scene.cluster.workers["refiner"]
    if when == "ranking":
        for worker in held:
            worker.forget_holding()
            await worker.order(hold_rank=True)
    asked = spec(images=3, top_k=1)
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    if when == "ranking":
        await asyncio.wait(
            [asyncio.create_task(worker.heard("holding")) for worker in held],
            return_when=asyncio.FIRST_COMPLETED,
        )
    else:
        await watcher.sees(lambda event: event.HasField("ranked"))
    await scene.cluster.gateway.kill()
    for worker in held:
        await worker.order(go=True, hold_rank=False)
    await scene.cluster.gateway.start()
    await watcher.finished()
    log = await check_log(scene.cluster.address, name, [watcher])
    assert log[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    assert [event.ranked.stage for event in log if event.HasField("ranked")] == [STAGE_GENERATE, STAGE_REFINE]
    row(f"ranked once in each stage, {len(ready(log))} pictures")


@pytest.mark.faults
async def test_killed_while_a_hand_has_to_choose(scene, row):
    asked = spec(images=2)
    asked.manual.SetInParent()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await watcher.sees(lambda event: event.HasField("selection_required"))
    await scene.cluster.gateway.kill()
    await scene.cluster.gateway.start()
    chosen = pipeline_pb2.SelectImagesRequest(request_id=f"choice-{name}", name=name)
    chosen.selections.add(image=f"{name}/images/generate-1").upscale.SetInParent()
    await scene.caller.again(lambda: scene.caller.stub.SelectImages(chosen, timeout=30))
    await watcher.sees(lambda event: is_of(event, "image_ready", "upscaler"))
    await scene.cluster.gateway.kill()
    await scene.cluster.gateway.start()
    # Once more, as a client does that had no answer: it chooses nothing twice.
    await scene.caller.again(lambda: scene.caller.stub.SelectImages(chosen, timeout=30))
    run = await scene.caller.get(name)
    made = {image.name.rpartition("/")[2] for image in run.images}
    assert made == {"generate-0", "generate-1", "upscale-0"}
    row(f"the choice was carried out once; the run is {RunState.Name(run.state)}")


@pytest.mark.faults
async def test_the_same_request_id_makes_one_run_across_restarts(scene, row):
    asked = spec()
    request_id = f"once-{time.time_ns()}"
    names = []
    for _ in range(4):
        names.append(await scene.caller.create(asked, request_id))
        await scene.cluster.gateway.kill()
        await scene.cluster.gateway.start()
    names.append(await scene.caller.create(asked, request_id))
    assert len(set(names)) == 1
    watcher = scene.watch(names[0])
    await watcher.finished()
    await check_whole(scene.caller, scene.cluster.address, names[0], asked, [watcher])
    row("5 times asked, 4 restarts, 1 run")


async def test_a_create_whose_answer_was_lost_makes_one_run(scene, row):
    """The gateway dies while many are being accepted; each comes back with its request_id."""
    asked = [spec(images=1, seed=number) for number in range(12)]
    ids = [f"lost-{time.time_ns()}-{number}" for number in range(12)]
    creating = [
        asyncio.create_task(scene.caller.create(one, request_id))
        for one, request_id in zip(asked, ids, strict=True)
    ]
    await asyncio.wait(creating, return_when=asyncio.FIRST_COMPLETED)
    await scene.cluster.gateway.kill()
    await scene.cluster.gateway.start()
    names = await asyncio.gather(*creating)
    again = [await scene.caller.create(one, request_id) for one, request_id in zip(asked, ids, strict=True)]
    assert names == again
    for name, one in zip(names, asked, strict=True):
        watcher = scene.watch(name)
        await watcher.finished()
        await check_whole(scene.caller, scene.cluster.address, name, one, [watcher])
    row("12 runs, none lost and none twice")


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.faults)])
async def test_a_watcher_that_disconnects_sees_every_event_once(scene, row, times):
    asked = spec(images=8)
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    for _ in range(times):
        before = watcher.num_connections
        watcher.disconnect()
        await watcher.comes_back(before)
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    lasting = [event for event in log if not event.HasField("preview")]
    assert watcher.num_connections >= times
    row(
        f"{watcher.num_connections} connections, {len(lasting)} lasting events of {log[-1].sequence}, each once"
    )


@pytest.mark.faults
async def test_many_watchers_of_one_run_see_the_same(scene, row):
    asked = spec(images=4)
    name = await scene.caller.create(asked)
    watchers = [scene.watch(name) for _ in range(10)]
    await watchers[0].sees(lambda event: event.HasField("image_ready"))
    await scene.cluster.gateway.kill()
    await scene.cluster.gateway.start()
    for watcher in watchers:
        await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, watchers)
    row(f"{len(watchers)} watchers of {len(log)} events across a restart")
