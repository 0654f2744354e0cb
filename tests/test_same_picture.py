"""A seed is a picture: the same alone, in a full batch, joined late and after others have left, in all three stages
and with both families of the generator.

Through the engine, with small networks. The same, but for floating point: in a batch of another size a sum is taken in
another order, which moves a value by about 1e-6 of its size. That can turn a value half-way between two of 256 levels to
the other side, so a pixel may differ by one level, and few pixels may. The generator's tokens are drawn from its logits;
its pictures would differ everywhere if one token did.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from services.engine.engine import Engine
from services.engine.events import Event, Finished, Progress
from services.engine.stepper import JobRequest, Stepper
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.conversion.random_weights import write_random_dalle, write_random_vqgan
from services.generator.dalle.model import load_model as load_generator
from services.generator.dalle.stepper import GeneratorStepper
from services.generator.unclip.conversion.random_weights import write_random as write_random_unclip
from services.generator.unclip.model import load_model as load_unclip
from services.generator.unclip.stepper import (
    GenerateJob as UnclipJob,
    ImagePrompt as UnclipPicture,
    UnclipStepper,
)
from services.images.codec import DecodedImage
from services.refiner.conversion.random_weights import write_random_part
from services.refiner.model import load_model as load_refiner
from services.refiner.stepper import RefineJob, RefinerStepper
from services.upscaler.model import place
from services.upscaler.stepper import UpscaleJob, UpscalerStepper
from tests.generator.conftest import DALLE_CONFIG, VQGAN_CONFIG
from tests.refiner.conftest import SMALL
from tests.upscaler.conftest import random_picture, random_swinir

NUM_SLOTS = 4
ONE_LEVEL, FEW_PIXELS = 1, 0.01


@dataclass(frozen=True)
class Stage:
    """How to make a stepper, the job that is watched, and others with settings of their own."""

    stepper: Callable[[], Stepper[Any, Any]]
    job: Any
    others: Sequence[Any]


@pytest.fixture(scope="module")
def generator(request, tmp_path_factory):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
    folder = tmp_path_factory.mktemp("generator")
    write_random_dalle(folder / "dalle", DALLE_CONFIG, dtype="float32")
    write_random_vqgan(folder / "vqgan", VQGAN_CONFIG)
    model = load_generator(folder)
    others = [GenerateJob(f"{n} cats", n, 0.7, 3 * n, 0.9, 1.0 + n) for n in range(NUM_SLOTS - 1)]
    job = GenerateJob("a red house", 7, 1.0, 0, 1.0, 3.0)
    return Stage(lambda: GeneratorStepper(model, num_slots=NUM_SLOTS), job, others)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("refiner")
    for part, config in SMALL.items():
        write_random_part(part, config, folder / part)
    model = load_refiner(folder, device="cpu")
    others = [
        RefineJob(f"{n} cats", None, n, num_steps=5 + n, guidance_scale=n) for n in range(NUM_SLOTS - 1)
    ]
    job = RefineJob("a red house", random_picture(32, 32), seed=7, init_seed=7, num_steps=8)
    return Stage(lambda: RefinerStepper(model, num_slots=NUM_SLOTS), job, others)


@pytest.fixture(scope="module")
def upscaler():
    torch.set_num_threads(1)
    network = place(random_swinir(), torch.device("cpu"))
    others = [
        UpscaleJob(DecodedImage(random_picture(20 + 9 * n, 30, n)), 16, 4) for n in range(NUM_SLOTS - 1)
    ]
    job = UpscaleJob(DecodedImage(random_picture(30, 40)), 16, 8)
    return Stage(lambda: UpscalerStepper(network, num_slots=NUM_SLOTS), job, others)


@pytest.fixture(scope="module")
def unclip(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unclip")
    write_random_unclip("tiny-unclip", folder)
    model = load_unclip(folder, device="cpu")
    picture = UnclipPicture(random_picture(24, 30))
    others = [
        UnclipJob(f"{n} cats", n, (picture,) * n, None, 3 + n, 4 + n, 2 * n, 1.0 + n, 2.0 + n)
        for n in range(NUM_SLOTS - 1)
    ]
    job = UnclipJob("a red house", 7, (), None, 4, 5, 3, 2.0, 3.0)
    return Stage(lambda: UnclipStepper(model, num_slots=NUM_SLOTS), job, others)


@pytest.fixture(scope="module", params=["generator", "unclip", "refiner", "upscaler"])
def stage(request):
    return request.getfixturevalue(request.param)


async def picture_of(events: AsyncIterator[Event]) -> np.ndarray:
    async for event in events:
        if isinstance(event, Finished):
            with Image.open(io.BytesIO(event.picture.png)) as image:
                return np.asarray(image).astype(int)
    raise AssertionError("the job failed")


async def make(engine: Engine[Any], job: Any, caller: str = "watched") -> np.ndarray:
    async with engine.submit([JobRequest(0, job)], caller=caller) as events:
        return await picture_of(events)


async def steps_made(events: AsyncIterator[Event], steps: int) -> None:
    async for event in events:
        if isinstance(event, Progress) and event.step >= steps:
            return


def assert_same(picture: np.ndarray, alone: np.ndarray) -> None:
    differences = np.abs(picture - alone)
    assert differences.max() <= ONE_LEVEL
    assert (differences > 0).mean() <= FEW_PIXELS


@pytest.fixture(scope="module")
def alone(stage):
    async def run() -> np.ndarray:
        async with Engine(stage.stepper(), max_queue=8) as engine:
            return await make(engine, stage.job)

    return asyncio.run(run())


async def test_the_same_picture_in_a_full_batch(stage, alone):
    async with Engine(stage.stepper(), max_queue=8) as engine:
        made = await asyncio.gather(
            *(make(engine, job, str(i)) for i, job in enumerate([*stage.others, stage.job]))
        )
    assert_same(made[-1], alone)


async def test_the_same_picture_where_it_joined_late(stage, alone):
    async with Engine(stage.stepper(), max_queue=8) as engine, AsyncExitStack() as stack:
        for i, job in enumerate(stage.others):
            events = await stack.enter_async_context(engine.submit([JobRequest(0, job)], caller=str(i)))
            await steps_made(events, 1 + i)
        assert_same(await make(engine, stage.job), alone)


async def test_the_same_picture_after_others_were_cancelled(stage, alone):
    async with Engine(stage.stepper(), max_queue=8) as engine, AsyncExitStack() as stack:
        for i, job in enumerate(stage.others):
            await stack.enter_async_context(engine.submit([JobRequest(0, job)], caller=str(i)))
        async with engine.submit([JobRequest(0, stage.job)], caller="watched") as events:
            await steps_made(events, 2)
            await stack.aclose()
            assert_same(await picture_of(events), alone)


async def test_another_picture_is_not_the_same(stage, alone):
    async with Engine(stage.stepper(), max_queue=8) as engine:
        other = await make(engine, stage.others[0])
    assert other.shape != alone.shape or np.abs(other - alone).mean() > 5
