"""Trains tiny-unclip's super-resolution, 32 px to 128 px: first the network of six steps, then that of the last.

    python -m training.unclip.train_super_res --minutes 12 --resume --export

Both see crops, for neither has attention, and pictures as soft and noisy as the decoder's. The first network is taught
at the six timesteps that it is used at. The last starts as a copy of it, and is taught on what the first leaves it.
Needs: the sprites, 1 GB of memory, about 0.4 CPU seconds a step.
"""

import argparse
import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from services.generator.unclip.networks.unet import UNet
from services.generator.unclip.schedule import advance, step_weights
from training.images import contact_sheet, crops_on_objects, object_psnr, psnr, to_pictures, to_tensor
from training.loop import (
    Losses,
    Measures,
    Options,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.unclip.export import restore, write_part
from training.unclip.networks import SUPER_RES, noisy, weighted_error
from training.unclip.scene_pool import SMALL_PX, pool_scenes
from training.world.drawing import Painter
from training.world.scenes import Scene
from training.world.sprites import SpriteSource, fluent_sprites

STEPS = step_weights(SUPER_RES.diffusion.num_steps)
FACTOR = SUPER_RES.network.image_size // SMALL_PX
# Of the last network's share of the time budget and of the steps.
LAST_SHARE = 0.25
OBJECT_WEIGHT = 2.0
SOFT_SHARE, LARGEST_NOISE = 0.6, 0.02


def reduce(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
    return F.avg_pool2d(images, FACTOR)


def enlarge(images: Float[Tensor, "B 3 h w"], size: int) -> Float[Tensor, "B 3 H W"]:
    """As the service does."""
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


def as_decoded(images: Float[Tensor, "B 3 h w"], rng: random.Random) -> Float[Tensor, "B 3 h w"]:
    """As the decoder might have drawn them: some of them softer, all with some noise."""
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    shares = torch.tensor([rng.random() if rng.random() < SOFT_SHARE else 0.0 for _ in images])
    noise = torch.tensor([rng.random() * LARGEST_NOISE for _ in images])
    shares, noise = shares.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
    return images + shares * (soft - images) + noise * torch.randn_like(images)


def draw_crops(
    painter: Painter, rng: random.Random, count: int, crop_px: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, their objects' masks, and what enlarging their small copies by interpolation gives."""
    scenes = pool_scenes(count, rng.getrandbits(32), held_out=False)
    images, mask, _ = crops_on_objects(painter, scenes, rng, crop_px=crop_px, stride=FACTOR)
    return images, mask, enlarge(as_decoded(reduce(images), rng), crop_px)


def losses_of_first(network: UNet, painter: Painter, batch_size: int, crop_px: int, step: int) -> Losses:
    rng = rng_of_step("super_res_first", step)
    device = device_of(network)
    images, mask, enlarged = (tensor.to(device) for tensor in draw_crops(painter, rng, batch_size, crop_px))
    timesteps = torch.tensor([rng.choice(STEPS[:-1]).timestep for _ in images], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        guess = network(torch.cat([noisy(images, timesteps), enlarged], dim=1), timesteps.float())
    return {"loss": weighted_error(guess.float(), images, timesteps, mask, OBJECT_WEIGHT)}


def losses_of_last(
    network: UNet, first: UNet, painter: Painter, batch_size: int, crop_px: int, step: int
) -> Losses:
    rng = rng_of_step("super_res_last", step)
    device = device_of(network)
    images, mask, enlarged = (tensor.to(device) for tensor in draw_crops(painter, rng, batch_size, crop_px))
    before, last = (torch.full((batch_size,), step.timestep, device=device) for step in STEPS[-2:])
    x = noisy(images, before)
    with torch.no_grad():
        output = first(torch.cat([x, enlarged], dim=1), before.float())
        x, _ = advance(x, output, torch.randn_like(x), [STEPS[-2]] * batch_size, SUPER_RES.diffusion)
    with torch.autocast(device.type, torch.bfloat16):
        guess = network(torch.cat([x, enlarged], dim=1), last.float())
    # The absolute error: the mean of what could be there is soft, the median sharp.
    weights = 1 + OBJECT_WEIGHT * mask
    return {"loss": ((guess.float() - images).abs() * weights).mean() / weights.mean()}


@torch.no_grad()
def sharpen(first: UNet, last: UNet, enlarged: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """All steps, as the service takes them; the noise is the same in every call."""
    generator = torch.Generator().manual_seed(0)
    device = enlarged.device
    x = torch.randn(enlarged.shape, generator=generator).to(device)
    for weights in STEPS:
        network = last if weights.is_last else first
        timesteps = torch.full((len(x),), float(weights.timestep), device=device)
        output = network(torch.cat([x, enlarged], dim=1), timesteps)
        noise = torch.randn(x.shape, generator=generator).to(device)
        x, _ = advance(x, output, noise, [weights] * len(x), SUPER_RES.diffusion)
    return x


class Exam:
    """Held-out scenes, whole."""

    def __init__(self, painter: Painter, scenes: Sequence[Scene]) -> None:
        self._pictures = [painter.paint(scene) for scene in scenes]
        self._masks = [painter.object_mask(scene) for scene in scenes]
        small = as_decoded(reduce(to_tensor(self._pictures)), random.Random(1))
        self._enlarged = enlarge(small, painter.size)

    def measure(self, first: UNet | None, network: UNet) -> Measures:
        enlarged = self._enlarged.to(device_of(network))
        found = to_pictures(sharpen(first or network, network, enlarged).cpu())
        return {
            "psnr": psnr(found, self._pictures),
            "object_psnr": object_psnr(found, self._pictures, self._masks),
            "object_psnr_bicubic": object_psnr(to_pictures(self._enlarged), self._pictures, self._masks),
        }

    def sheet(self, first: UNet | None, network: UNet) -> Image.Image:
        enlarged = self._enlarged.to(device_of(network))
        found = to_pictures(sharpen(first or network, network, enlarged).cpu())
        rows = [to_pictures(self._enlarged), found, [np.asarray(picture) for picture in self._pictures]]
        return contact_sheet([row[:8] for row in rows])


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> tuple[UNet, UNet]:
    options = options_from(arguments)
    torch.manual_seed(0)
    painter = Painter(sprites)
    exam = Exam(painter, pool_scenes(16, 1, held_out=True))
    common = (painter, options.batch_size, arguments.crop_px)
    network = UNet(SUPER_RES.network)
    if options.from_weights:
        restore(network, "super_res_first")
    first = train(
        "unclip_super_res_first",
        network,
        partial(losses_of_first, network, *common),
        _shared(options, 1 - LAST_SHARE),
        measure=partial(exam.measure, None),
        sheet=partial(exam.sheet, None),
    )
    network = copy.deepcopy(first).requires_grad_(True)
    last = train(
        "unclip_super_res_last",
        network,
        partial(losses_of_last, network, first, *common),
        _shared(options, LAST_SHARE),
        measure=partial(exam.measure, first),
        sheet=partial(exam.sheet, first),
    )
    if arguments.export:
        write_part("super_res_first", first, SUPER_RES)
        write_part("super_res_last", last, SUPER_RES)
    return first, last


def _shared(options: Options, share: float) -> Options:
    minutes = None if options.minutes is None else options.minutes * share
    return replace(options, steps=max(1, round(options.steps * share)), minutes=minutes)


def main() -> None:
    parser = option_parser(
        __doc__, steps=3000, batch_size=8, learning_rate=1.5e-3, ema_decay=0.995, measure_every=200
    )
    parser.add_argument("--crop-px", type=int, default=64)
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
