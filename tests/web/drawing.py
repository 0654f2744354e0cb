"""Stages that draw something to look at, in steps that a test can hold up: what a browser is shown in the tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.images.codec import encode_png
from tests.gateway.fake_stage import ScriptedGenerator, ScriptedRefiner, ScriptedStage, ScriptedUpscaler
from triptych.v1.stage_pb2 import ImageData, Inpainting, ModelInfo, StageEvent

NUM_STEPS = 4
SIDE_PX = 32
SCALE = 4
# What each picture is said to have taken.
COMPUTE_MS = 1_500
VOCABULARY = {"objects": ["house", "full moon", "pine tree"], "colours": ["red", "blue"], "places": ["sea"]}
EXAMPLES = ["a red house by the sea", "a gorgeous blurgh", "a blue house under a full moon"]


def draw(seed: int, side: int, share: float = 1.0) -> ImageData:
    """A sky, a ground and a disc that depend on the seed; grey as far as `share` is below 1."""
    rng = np.random.default_rng(seed)
    sky, ground, disc = rng.integers(40, 230, (3, 3))
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.where(y[..., None] < 0.65, sky * (0.6 + 0.5 * y[..., None]), ground)
    centre = rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.5)
    picture[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.03] = disc
    shown = 128 + (np.clip(picture, 0, 255) - 128) * share
    return ImageData(mime_type="image/png", data=encode_png(shown.astype(np.uint8)), width=side, height=side)


async def script(stage: ScriptedStage, index: int, seed: int) -> AsyncIterator[StageEvent]:
    """In the place of a stage's own: a preview at once, the rest when the picture's gate is open."""
    side = SIDE_PX * SCALE if isinstance(stage, ScriptedUpscaler) else SIDE_PX
    if index in stage.errors:
        raise stage.errors[index]
    if stage.queue_position:
        yield StageEvent(accepted=StageEvent.Accepted(queue_position=stage.queue_position, num_images=1))
        await stage.gates[index].wait()
    yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
    for step in range(1, NUM_STEPS):
        yield StageEvent(progress=StageEvent.Progress(index=index, step=step, num_steps=NUM_STEPS))
        shown = draw(seed, side, step / NUM_STEPS)
        preview = StageEvent.Preview(index=index, step=step, num_steps=NUM_STEPS, image=shown)
        yield StageEvent(preview=preview)
        await stage.gates[index].wait()
    if index in stage.failures:
        yield StageEvent(failure=stage.failures[index])
        return
    drawn = draw(seed, side, 0.0 if index in stage.blank else 1.0)
    yield StageEvent(image=StageEvent.FinishedImage(index=index, image=drawn, seed=seed))
    timing = StageEvent.Timing(index=index)
    timing.compute.FromMilliseconds(COMPUTE_MS)
    yield StageEvent(timing=timing)


@dataclass
class Stages:
    """One worker of each kind; its `gates`, `failures` and `errors` are the test's to set."""

    generator: ScriptedGenerator
    refiner: ScriptedRefiner
    upscaler: ScriptedUpscaler

    @property
    def options(self) -> list[str]:
        """Of a gateway that is to find them."""
        return [
            *("--generator", self.generator.address),
            *("--refiner", self.refiner.address),
            *("--upscaler", self.upscaler.address),
        ]

    def reset(self) -> None:
        """Nothing fails, nothing waits, nothing has been asked."""
        for stage in (self.generator, self.refiner, self.upscaler):
            self.let_go(stage)
            stage.failures.clear()
            stage.errors.clear()
            stage.requests.clear()
            stage.queue_position = 0
            # Indexes of pictures that come out in one colour.
            stage.blank = set()
        self.refiner.rank_answer = None

    def hold(self, stage: ScriptedStage, *indexes: int) -> None:
        stage.close_gates(*indexes)

    def let_go(self, stage: ScriptedStage) -> None:
        for gate in stage.gates.values():
            gate.set()


@asynccontextmanager
async def drawing_stages() -> AsyncIterator[Stages]:
    stages = Stages(ScriptedGenerator(), ScriptedRefiner(), ScriptedUpscaler())
    for kind, words in VOCABULARY.items():
        stages.generator.info.vocabulary[kind].CopyFrom(ModelInfo.WordList(words=words))
    stages.generator.info.example_prompts.extend(EXAMPLES)
    stages.generator.info.defaults["temperature"] = 0.4
    stages.generator.info.image_size = stages.refiner.info.image_size = SIDE_PX
    stages.refiner.info.defaults["num_steps"] = NUM_STEPS
    stages.refiner.info.defaults["skip_ratio"] = 0.5
    stages.refiner.info.inpainting = Inpainting.INPAINTING_BLENDED
    stages.upscaler.info.scale = SCALE
    async with AsyncExitStack() as stack:
        for stage in (stages.generator, stages.refiner, stages.upscaler):
            stage._script = partial(script, stage)
            stage.blank = set()
            await stage.start()
            stack.push_async_callback(stage.kill)
        yield stages
