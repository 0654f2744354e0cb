"""A device that is full fails one image, and the next one succeeds: in all three stages, through the engine.

The exceptions are the libraries' own, raised at the call of the network in real steppers.
"""

import jax
import numpy as np
import pytest
import torch

from services.engine.engine import Engine
from services.engine.events import Failed, Finished
from services.engine.stepper import JobRequest
from services.errors import DeviceOutOfMemory
from services.generator.dalle import batch
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.conversion.random_weights import write_random_dalle, write_random_vqgan
from services.generator.dalle.model import load_model as load_generator
from services.generator.dalle.stepper import GeneratorStepper
from services.images.codec import DecodedImage
from services.refiner.conversion.random_weights import write_random_part
from services.refiner.model import load_model as load_refiner
from services.refiner.stepper import RefineJob, RefinerStepper
from services.upscaler.model import place
from services.upscaler.stepper import UpscaleJob, UpscalerStepper
from tests.generator.conftest import DALLE_CONFIG, VQGAN_CONFIG
from tests.refiner.conftest import SMALL
from tests.upscaler.conftest import random_picture, random_swinir


def failing(call, calls, error):
    """The call, which raises in those of these numbers, counted from 1."""
    made = []

    def fail_or_call(*arguments, **named):
        made.append(1)
        if len(made) in calls:
            raise error
        return call(*arguments, **named)

    return fail_or_call


async def outcomes(stepper, jobs):
    """Of jobs that are asked for together: what each ended with."""
    async with Engine(stepper, max_queue=8) as engine:
        tickets = [JobRequest(index, job) for index, job in enumerate(jobs)]
        async with engine.submit(tickets, caller="me") as events:
            return {event.index: event async for event in events if isinstance(event, Finished | Failed)}


async def assert_one_fails_alone_and_the_next_succeeds(make_stepper, job, fill_device):
    """The device is full for the batch of two, and for the first of them alone, too."""
    stepper = make_stepper()
    fill_device(stepper, {1, 2})
    ended = await outcomes(stepper, [job, job])
    assert isinstance(ended[0], Failed)
    assert isinstance(ended[0].error, DeviceOutOfMemory)
    assert isinstance(ended[1], Finished)
    assert isinstance((await outcomes(stepper, [job]))[0], Finished)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("tokens_per_dispatch", [1, 4])
async def test_of_the_generator(tmp_path, request, monkeypatch, tokens_per_dispatch):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(request.config.cache.mkdir("jax")))
    write_random_dalle(tmp_path / "dalle", DALLE_CONFIG, dtype="float32")
    write_random_vqgan(tmp_path / "vqgan", VQGAN_CONFIG)
    model = load_generator(tmp_path)
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12884901888 bytes.")

    def fill_device(_stepper, calls):
        for name in ("read_tokens", "_loop"):
            monkeypatch.setattr(batch, name, failing(getattr(batch, name), calls, full))

    await assert_one_fails_alone_and_the_next_succeeds(
        lambda: GeneratorStepper(model, num_slots=2, tokens_per_dispatch=tokens_per_dispatch),
        GenerateJob("a red house", 7, 1.0, 0, 1.0, 3.0),
        fill_device,
    )


FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.")


async def test_of_the_refiner(tmp_path, monkeypatch):
    for part, config in SMALL.items():
        write_random_part(part, config, tmp_path / part)
    model = load_refiner(tmp_path, device="cpu")
    await assert_one_fails_alone_and_the_next_succeeds(
        lambda: RefinerStepper(model, num_slots=2),
        RefineJob("a cat", np.zeros((32, 32, 3), np.uint8), num_steps=5, skip_ratio=0),
        lambda _stepper, calls: monkeypatch.setattr(
            model.unet, "forward", failing(model.unet.forward, calls, FULL)
        ),
    )


async def test_of_the_upscaler(monkeypatch):
    network = place(random_swinir(), torch.device("cpu"))
    await assert_one_fails_alone_and_the_next_succeeds(
        lambda: UpscalerStepper(network, num_slots=2),
        UpscaleJob(DecodedImage(random_picture(20, 30)), 16, 4),
        lambda _stepper, calls: monkeypatch.setattr(
            network, "forward", failing(network.forward, calls, FULL)
        ),
    )
