"""Trains tiny-unclip's decoder with its text projection: 32 px pictures from a CLIP embedding and the text.

    python -m training.unclip.train_decoder --steps 3000 --resume

It predicts the picture, not its noise: a network this small gets there sooner. One picture in ten is drawn
without its embedding and three in ten without their text, for guidance and for variations.
Needs: the sprites, tiny-unclip's exported CLIP, 1 GB of memory, about 0.7 CPU seconds a step on any CPU.
"""

import argparse
import random
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from services.generator.unclip.schedule import NUM_TRAIN_TIMESTEPS
from training.images import contact_sheet, to_pictures
from training.loop import (
    Losses,
    Measures,
    device_of,
    options_from,
    rng_of_step,
    train,
)
from training.unclip.export import restore, write_part
from training.unclip.lessons import PLAIN_ATTENTION, read_lessons, run_on_lessons
from training.unclip.networks import (
    DECODER,
    TEXT_PROJECTION,
    Decoder,
    Reader,
    noisy,
    weighted_error,
)
from training.unclip.sampling import draw
from training.unclip.scene_pool import ScenePool
from training.unclip.train_clip import PatchProbe
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.sprites import SpriteSource

TEXT_DROPOUT, EMBEDDING_DROPOUT, OBJECT_WEIGHT = 0.3, 0.1, 4.0
# Of the embeddings' deviation: what the prior predicts is not quite what CLIP sees.
EMBEDDING_NOISE = 0.15
COARSE_WEIGHT, PATCH_WEIGHT = 0.3, 0.05
DECIDING, DECIDING_SHARE = (600, 960), 0.4


class ProbedDecoder(nn.Module):
    """What is trained: the decoder, and what is asked of its coarsest pixels. The questions are not exported.

    Each coarse pixel is asked for its part of the picture, and for what stands there in which colour: else the layout
    and the shapes are learnt late, for they make up little of a picture's error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()
        config = DECODER.network
        side = config.image_size >> (len(config.channels) - 1)
        self.patches = PatchProbe(config.channels[-1], side)
        self.norm = nn.LayerNorm(config.channels[-1])
        self.pixels = nn.Linear(config.channels[-1], 3 * (config.image_size // side) ** 2)
        self._side = side
        self._coarse: list[Tensor] = []
        # The attention behind the last residual block before the first doubling.
        last: nn.Module = self.decoder.unet.output_blocks[config.num_res_blocks][1]
        last.register_forward_hook(lambda _module, _inputs, output: self._coarse.append(output))

    def forward(self, *arguments: Any) -> tuple[Tensor, Float[Tensor, "B N C"], Tensor]:
        """The decoder's guess, the coarse pixels, and the guess that can be read off them."""
        self._coarse.clear()
        guess = self.decoder(*arguments)
        coarse = self.norm(rearrange(self._coarse.pop(), "b c h w -> b (h w) c").float())
        pixels = rearrange(
            self.pixels(coarse),
            "b (h w) (c p q) -> b c (h p) (w q)",
            h=self._side,
            c=3,
            p=guess.shape[-1] // self._side,
        )
        return guess.float(), coarse, pixels


def shaping_timesteps(count: int) -> Tensor:
    """Most of them where it is decided what stands where: left or right, but not half of it in both places."""
    some, all_ = torch.randint(*DECIDING, (count,)), torch.randint(NUM_TRAIN_TIMESTEPS, (count,))
    return torch.where(torch.rand(count) < DECIDING_SHARE, some, all_)


def losses_of_step(
    probed: ProbedDecoder, pool: ScenePool, reader: Reader, painter: Painter, batch_size: int, step: int
) -> Losses:
    decoder, device = probed.decoder, device_of(probed)
    rng = rng_of_step("decoder", step)
    rows = [rng.randrange(len(pool.scenes)) for _ in range(batch_size)]
    prompts = ["" if rng.random() < TEXT_DROPOUT else caption(pool.scenes[row], rng).text for row in rows]
    is_told = torch.tensor([rng.random() >= EMBEDDING_DROPOUT for _ in rows], device=device)
    x0 = pool.small[rows].to(device).float() / 127.5 - 1
    timesteps = shaping_timesteps(batch_size).to(device)
    embeddings = pool.embeddings[rows].to(device)
    embeddings = embeddings + EMBEDDING_NOISE * decoder.deviation * torch.randn_like(embeddings)
    with torch.autocast(device.type, torch.bfloat16), PLAIN_ATTENTION():
        guess, coarse, coarse_guess = probed(
            noisy(x0, timesteps), timesteps.float(), embeddings, is_told, reader.read(prompts)
        )
    mask = pool.object_mask[rows].to(device)
    error = weighted_error(guess, x0, timesteps, mask, OBJECT_WEIGHT)
    coarse_error = weighted_error(coarse_guess, x0, timesteps, mask, OBJECT_WEIGHT)
    asked = probed.patches.loss(coarse, [pool.scenes[row] for row in rows], painter)
    loss = error + COARSE_WEIGHT * coarse_error + PATCH_WEIGHT * asked
    return {"loss": loss, "error": error, "coarse_error": coarse_error, "patches": asked}


class Exam:
    """Held-out scenes: how near the decoder comes to them, given the true embedding."""

    def __init__(self, pool: ScenePool, reader: Reader) -> None:
        self._pool = pool
        self._text = reader.read(
            [caption(scene, random.Random(i)).text for i, scene in enumerate(pool.scenes)]
        )
        self._blank = reader.read([""] * len(pool.scenes))

    @torch.no_grad()
    def measure(self, probed: ProbedDecoder) -> Measures:
        decoder = probed.decoder
        device = device_of(decoder)
        x0 = self._pool.small.to(device).float() / 127.5 - 1
        told = torch.ones(len(x0), dtype=torch.bool, device=device)
        measures: Measures = {}
        for t in (500, 900):
            torch.manual_seed(0)
            timesteps = torch.full((len(x0),), t, device=device)
            embeddings = self._pool.embeddings.to(device)
            guess = decoder(noisy(x0, timesteps), timesteps.float(), embeddings, told, self._text)
            measures[f"loss_{t}"] = float(F.mse_loss(guess, x0))
        return measures

    def sheet(self, probed: ProbedDecoder) -> Image.Image:
        """Truth, and drawn from its embedding without guidance and with."""
        count = 12
        embeddings = self._pool.embeddings.to(device_of(probed))
        truth = to_pictures(self._pool.small[:count].float() / 127.5 - 1)
        drawn = [
            draw(probed.decoder, embeddings, self._text, self._blank, count, guidance_scale=scale)
            for scale in (1.0, DECODER.diffusion.guidance_scale)
        ]
        rows = [truth, *(to_pictures(pictures.cpu()) for pictures in drawn)]
        return contact_sheet(rows).resize((12 * 34 * 3, 3 * 34 * 3), Image.Resampling.NEAREST)


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Decoder:
    options, lessons = options_from(arguments), read_lessons(arguments, sprites, num_measured=32)
    probed = ProbedDecoder()
    probed.decoder.begin(lessons.pool.embeddings)
    if options.from_weights:
        restore(probed.decoder.unet, "decoder")
        restore(probed.decoder.text_projection, "text_proj")
    exam = Exam(lessons.measured, lessons.reader)
    average = train(
        "unclip_decoder",
        probed,
        partial(losses_of_step, probed, lessons.pool, lessons.reader, lessons.painter, options.batch_size),
        options,
        measure=exam.measure,
        sheet=exam.sheet,
    ).decoder
    if arguments.export:
        write_part("decoder", average.unet, DECODER)
        write_part("text_proj", average.text_projection, TEXT_PROJECTION)
    return average


if __name__ == "__main__":
    run_on_lessons(
        run,
        __doc__,
        steps=10000,
        batch_size=24,
        learning_rate=2e-3,
        ema_decay=0.995,
        measure_every=200,
        log_every=20,
    )
