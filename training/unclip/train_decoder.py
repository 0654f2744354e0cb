"""Trains tiny-unclip's decoder with its text projection: 32 px pictures from a CLIP embedding and the text.

    python -m training.unclip.train_decoder --steps 3000 --resume

It predicts the picture, not its noise: a network this small gets there sooner. One picture in ten is drawn
without its embedding and three in ten without their text, for guidance and for variations.
Needs: the sprites, the refiner's exported CLIP, 1 GB of memory, about 0.8 CPU seconds a step on any CPU.
"""

import argparse
import random
from functools import partial

import torch
import torch.nn.functional as F
from PIL import Image

from training.images import contact_sheet, to_pictures
from training.loop import (
    OUTPUT_FOLDER,
    Losses,
    Measures,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.unclip.networks import Decoder, Reader, draw_timesteps, noisy, weighted_error
from training.unclip.sampling import draw
from training.unclip.scene_pool import ScenePool, cached_pool, make_pool, pool_scenes
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.sprites import SpriteSource, fluent_sprites

TEXT_DROPOUT, EMBEDDING_DROPOUT, OBJECT_WEIGHT = 0.3, 0.1, 4.0


def losses_of_step(decoder: Decoder, pool: ScenePool, reader: Reader, batch_size: int, step: int) -> Losses:
    rng = rng_of_step("decoder", step)
    rows = [rng.randrange(len(pool.scenes)) for _ in range(batch_size)]
    prompts = ["" if rng.random() < TEXT_DROPOUT else caption(pool.scenes[row], rng).text for row in rows]
    is_told = torch.tensor([rng.random() >= EMBEDDING_DROPOUT for _ in rows])
    x0 = pool.small[rows].float() / 127.5 - 1
    timesteps = draw_timesteps(batch_size)
    with torch.autocast("cpu", torch.bfloat16):
        guess = decoder(
            noisy(x0, timesteps), timesteps.float(), pool.embeddings[rows], is_told, reader.read(prompts)
        )
    return {"loss": weighted_error(guess.float(), x0, pool.object_mask[rows], OBJECT_WEIGHT)}


class Exam:
    """Held-out scenes: how near the decoder comes to them, given the true embedding."""

    def __init__(self, pool: ScenePool, reader: Reader) -> None:
        self._pool = pool
        self._text = reader.read(
            [caption(scene, random.Random(i)).text for i, scene in enumerate(pool.scenes)]
        )
        self._blank = reader.read([""] * len(pool.scenes))

    @torch.no_grad()
    def measure(self, decoder: Decoder) -> Measures:
        x0 = self._pool.small.float() / 127.5 - 1
        told = torch.ones(len(x0), dtype=torch.bool)
        measures: Measures = {}
        for t in (500, 900):
            torch.manual_seed(0)
            timesteps = torch.full((len(x0),), t)
            guess = decoder(noisy(x0, timesteps), timesteps.float(), self._pool.embeddings, told, self._text)
            measures[f"loss_{t}"] = float(F.mse_loss(guess, x0))
        return measures

    def sheet(self, decoder: Decoder) -> Image.Image:
        """Truth, and drawn from its embedding without guidance and with."""
        count = 12
        truth = to_pictures(self._pool.small[:count].float() / 127.5 - 1)
        drawn = [
            to_pictures(
                draw(decoder, self._pool.embeddings, self._text, self._blank, count, guidance_scale=scale)
            )
            for scale in (1.0, 2.5)
        ]
        return contact_sheet([truth, *drawn]).resize((12 * 34 * 3, 3 * 34 * 3), Image.Resampling.NEAREST)


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Decoder:
    options = options_from(arguments)
    torch.manual_seed(0)
    reader, painter = Reader(), Painter(sprites)
    pool = cached_pool(OUTPUT_FOLDER / "unclip" / "pool.pt", arguments.num_scenes, reader.clip, painter)
    exam = Exam(make_pool(pool_scenes(32, 1, held_out=True), reader.clip, painter, num_large=1), reader)
    decoder = Decoder()
    return train(
        "unclip_decoder",
        decoder,
        partial(losses_of_step, decoder, pool, reader, options.batch_size),
        options,
        measure=exam.measure,
        sheet=exam.sheet,
    )


def main() -> None:
    parser = option_parser(
        __doc__,
        steps=3000,
        batch_size=32,
        learning_rate=2e-3,
        ema_decay=0.995,
        measure_every=200,
        log_every=20,
    )
    parser.add_argument("--num-scenes", type=int, default=5000, help="training scenes, painted once")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
