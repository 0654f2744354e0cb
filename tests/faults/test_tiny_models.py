"""The built-in models, as they are served: a picture that is begun again elsewhere is the same to the last bit."""

import asyncio
import signal
import sys

import pytest
import pytest_asyncio

from tests.faults.processes import cluster
from tests.faults.run_observer import Caller, Watcher, check_log, ready
from triptych.v1.pipeline_pb2 import RunSpec, RunState
from triptych.v1.stage_pb2 import STAGE_GENERATE, STAGE_REFINE, STAGE_UPSCALE

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.faults, pytest.mark.timeout(900)]

STAGES = {"generator": STAGE_GENERATE, "refiner": STAGE_REFINE, "upscaler": STAGE_UPSCALE}


def serve_command(stage: str, *, port: int, host: str) -> list[str]:
    serve = [sys.executable, "-m", "triptych", "serve", stage, "--host", host, "--port", str(port)]
    # One picture at a time: in a batch of another size sums are taken in another order, which a test of its own is about.
    return [*serve, "--slots", "1", "--threads", "1", "--grace", "2", "--exit-with-parent"]


def tiny_spec() -> RunSpec:
    asked = RunSpec(prompt="a red house under a full moon", seed=7)
    asked.generate.count = 2
    asked.refine.count = 1
    # Some of them are skipped, and the sampler needs four.
    asked.refine.settings.num_steps = 24
    # Several tiles, or there would be no step after the first.
    asked.upscale.settings.tile_size = 32
    asked.automatic.top_k_after_generate = 0
    asked.automatic.top_k_after_refine = 0
    return asked


async def hashes_of(started, watcher):
    """The pictures' hashes by stage and index, once the run has succeeded."""
    await watcher.finished()
    log = await check_log(started.address, watcher.name, [watcher])
    assert log[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    return {name.rpartition("/")[2]: image.sha256 for name, image in ready(log).items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tmp_path_factory):
    """Two workers of each stage with the built-in models, and what they make when nothing goes wrong."""
    async with cluster(tmp_path_factory.mktemp("tiny"), make_stage=serve_command) as started:
        async with Caller(started.address) as caller:
            await caller.sees_workers(2)
            name = await caller.create(tiny_spec())
        yield started, await hashes_of(started, Watcher(started.address, name))


@pytest_asyncio.fixture(loop_scope="module")
async def all_alive(tiny):
    """Whatever a case has killed or stopped is there again for the next one, also where the case failed."""
    started, _ = tiny
    yield
    dead = []
    for process in (*started.all_workers(), started.gateway):
        if process.is_alive:
            process.send(signal.SIGCONT)
        else:
            dead.append(process)
    await asyncio.gather(*(process.start() for process in dead))


async def sees_a_picture_under_way(watcher, stage):
    """Its last step so far, and the address of the worker that makes it."""

    def is_under_way(event):
        index = event.progress.index
        done = {one.image_ready.image.index for one in watcher.events if one.image_ready.image.stage == stage}
        return event.HasField("progress") and event.progress.stage == stage and index not in done

    step = (await watcher.sees(is_under_way)).progress
    begun = [event.stage_started for event in watcher.events if event.stage_started.stage == stage]
    return step, next(one.worker for one in reversed(begun) if step.index in one.indexes)


@pytest.mark.usefixtures("all_alive")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda one: one.name)
async def test_pictures_begun_again_in_every_stage_are_the_same(tiny, row, number):
    """One run loses a worker in each of its stages: the pictures' names say where it went wrong, if it does."""
    started, undisturbed = tiny
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        name = await caller.create(tiny_spec())
    watcher = Watcher(started.address, name)
    victims, steps = [], []
    for worker, stage in STAGES.items():
        step, address = await sees_a_picture_under_way(watcher, stage)
        victims.append(started.worker_at(address))
        victims[-1].send(number)
        steps.append(f"{worker} from step {step.step} of {step.num_steps} on")
    assert await hashes_of(started, watcher) == undisturbed
    reported = [event.warning.reason for event in watcher.events if event.HasField("warning")]
    row(f"{', '.join(steps)}; {', '.join(reported) or 'all finished first'}; all bytes the same")
    for victim in victims:
        await victim.kill()


@pytest.mark.usefixtures("all_alive")
async def test_the_gateway_is_killed(tiny, row):
    started, undisturbed = tiny
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        name = await caller.create(tiny_spec())
    watcher = Watcher(started.address, name)
    for stage in STAGES.values():
        await watcher.sees(
            lambda event, stage=stage: event.HasField("progress") and event.progress.stage == stage
        )
        await started.gateway.kill()
        await started.gateway.start()
    assert await hashes_of(started, watcher) == undisturbed
    row("once in each stage; all bytes the same")
