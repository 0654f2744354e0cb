"""unCLIP, as it is served: workers are lost and runs cancelled in each of its three phases; pictures stay the same."""

import asyncio
import io
import signal
import sys

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from services.generator.unclip.conversion.random_weights import write_random
from services.weights.model_folder import write_manifest
from tests.faults.processes import cluster, stage_command
from tests.faults.run_observer import Caller, Watcher, check_log, ready
from triptych.v1.pipeline_pb2 import CancelRunRequest, RunSpec, RunState
from triptych.v1.stage_pb2 import ImageData, ImagePrompt

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.faults, pytest.mark.timeout(900)]

# Enough of each that a signal reaches the phase in which it was sent.
STEPS = {"prior": 40, "decoder": 40, "super_res": 20}
# How many steps come before each phase.
BEGINS = {"prior": 0, "decoder": 40, "super_res": 80}


def spec(*, pictures: int = 0) -> RunSpec:
    asked = RunSpec(prompt="a red house", seed=7)
    asked.generate.count = 2
    for name, num_steps in STEPS.items():
        setattr(asked.generate.settings, f"{name}_num_steps", num_steps)
    for i in range(pictures):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        image = ImageData(mime_type="image/png", data=data.getvalue())
        asked.generate.image_prompts.append(ImagePrompt(image=image, weight=1 + i))
    asked.automatic.SetInParent()
    return asked


async def hashes_of(started, watcher):
    """The pictures' hashes by index, once the run has succeeded."""
    await watcher.finished()
    log = await check_log(started.address, watcher.name, [watcher])
    assert log[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    return {name.rpartition("/")[2]: image.sha256 for name, image in ready(log).items()}


async def made(started, asked):
    async with Caller(started.address) as caller:
        name = await caller.create(asked)
    return await hashes_of(started, Watcher(started.address, name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    """Two workers of a small unCLIP beside scripted refiners and upscalers, and the pictures of undisturbed runs."""
    model = tmp_path_factory.mktemp("model")
    write_random("tiny-unclip", model)
    write_manifest(model, name="tiny-unclip", stage="generator", architecture="unclip", licence="none")

    def make_stage(stage: str, *, port: int, host: str) -> list[str]:
        if stage != "generator":
            return stage_command(stage, port=port, host=host)
        serve = [sys.executable, "-m", "triptych", "serve", stage, "--host", host, "--port", str(port)]
        more = ["--model", str(model), "--slots", "1", "--threads", "1", "--grace", "2", "--exit-with-parent"]
        return [*serve, *more]

    async with cluster(tmp_path_factory.mktemp("unclip"), make_stage=make_stage) as started:
        async with Caller(started.address) as caller:
            await caller.sees_workers(2)
        yield started, await made(started, spec()), await made(started, spec(pictures=2))


@pytest_asyncio.fixture(loop_scope="module")
async def all_alive(served):
    """What a case has killed is there again for the next one, also where the case failed."""
    started, *_ = served
    yield
    dead = [one for one in (*started.all_workers(), started.gateway) if not one.is_alive]
    await asyncio.gather(*(process.start() for process in dead))


async def sees_phase(watcher, first_step):
    """A picture that has made that step and not yet all, and the address of its worker."""
    step = (await watcher.sees(lambda event: event.progress.step > first_step)).progress
    begun = [event.stage_started for event in watcher.events if event.HasField("stage_started")]
    return step, next(one.worker for one in reversed(begun) if step.index in one.indexes)


# With image prompts there is no prior, and they have to reach the other worker, too.
@pytest.mark.usefixtures("all_alive")
@pytest.mark.parametrize(("first_step", "image_prompts"), [*((step, 0) for step in BEGINS.values()), (0, 2)])
async def test_a_picture_begun_again_on_another_worker_is_the_same(served, row, first_step, image_prompts):
    started, *undisturbed = served
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        name = await caller.create(spec(pictures=image_prompts))
    watcher = Watcher(started.address, name)
    step, address = await sees_phase(watcher, first_step)
    victim = started.worker_at(address)
    victim.send(signal.SIGKILL)
    assert await hashes_of(started, watcher) == undisturbed[1 if image_prompts else 0]
    assert "WORKER_LOST" in {event.warning.reason for event in watcher.events}
    row(f"killed after step {step.step} of {step.num_steps}; all bytes the same")
    await victim.kill()


@pytest.mark.usefixtures("all_alive")
@pytest.mark.parametrize("phase", BEGINS)
async def test_a_cancelled_run_leaves_the_next_one_its_pictures(served, row, phase):
    started, undisturbed, _ = served
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        name = await caller.create(spec())
        watcher = Watcher(started.address, name)
        step, _ = await sees_phase(watcher, BEGINS[phase])
        await caller.stub.CancelRun(CancelRunRequest(name=name), timeout=30)
    await watcher.finished()
    log = await check_log(started.address, name, [watcher])
    assert log[-1].finished.state == RunState.RUN_STATE_CANCELLED
    assert await made(started, spec()) == undisturbed
    row(f"cancelled after step {step.step} of {step.num_steps}; the next run has all bytes the same")


@pytest.mark.usefixtures("all_alive")
async def test_the_gateway_is_killed_in_every_phase(served, row):
    started, _, undisturbed = served
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        name = await caller.create(spec(pictures=2))
    watcher = Watcher(started.address, name)
    for first_step in (0, STEPS["decoder"]):
        await sees_phase(watcher, first_step)
        await started.gateway.kill()
        await started.gateway.start()
    assert await hashes_of(started, watcher) == undisturbed
    row("once in each phase; all bytes the same")
