"""Stages whose previews are true ones: the picture grows out of grey as its steps go by, as often as it is asked to be shown."""

import io
from functools import partial

import numpy as np
from PIL import Image

from services.images.codec import encode_png
from tests.gateway.fake_stage import SIDE_PX, image
from triptych.v1.stage_pb2 import INPAINTING_BLENDED, ImageData, StageEvent

NUM_STEPS = 12


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def unfinished(seed: int, side: int, share: float) -> ImageData:
    final = pixels(image(seed, side).data)
    so_far = (128 + (final - 128) * share).astype(np.uint8)
    return ImageData(mime_type="image/png", data=encode_png(so_far), width=side, height=side)


async def paint(stage, index, seed):
    """In the place of a scripted stage's script."""
    if index in stage.errors:
        raise stage.errors[index]
    if index in stage.failures:
        yield StageEvent(failure=stage.failures[index])
        return
    every = stage.requests[-1].settings.preview_every
    yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
    for step in range(1, NUM_STEPS + 1):
        yield StageEvent(progress=StageEvent.Progress(index=index, step=step, num_steps=NUM_STEPS))
        if every and step % every == 0 and step < NUM_STEPS:
            shown = unfinished(seed, stage.side, step / NUM_STEPS)
            preview = StageEvent.Preview(index=index, step=step, num_steps=NUM_STEPS, image=shown)
            yield StageEvent(preview=preview)
        if step == NUM_STEPS // 2:
            await stage.gates[index].wait()
    picture = image(seed, stage.side)
    yield StageEvent(image=StageEvent.FinishedImage(index=index, image=picture, seed=seed))
    yield StageEvent(timing=StageEvent.Timing(index=index))


async def set_up(gateway) -> None:
    """Has the scripted stages paint, and say of their models what real ones do."""
    for stage in (gateway.generator, gateway.refiner, gateway.upscaler):
        stage._script = partial(paint, stage)
        stage.info.name = "tiny"
    gateway.generator.info.image_size = gateway.refiner.info.image_size = SIDE_PX
    gateway.generator.info.limits.max_num_steps = NUM_STEPS
    gateway.refiner.info.defaults["num_steps"] = NUM_STEPS
    gateway.refiner.info.inpainting = INPAINTING_BLENDED
    gateway.upscaler.info.scale = 4
    await gateway.notice()
