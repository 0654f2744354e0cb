"""Trains tiny-unclip's prior: a picture's CLIP embedding from the text.

    python -m training.unclip.train_prior --minutes 8 --resume --export

It predicts the scaled embedding itself. One text in ten is left empty, for guidance.
Needs: tiny-unclip's exported CLIP, the decoder's pool of scenes, 1 GB of memory, about 0.8 CPU seconds a step.
"""

import argparse
import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from services.generator.unclip.networks.prior import Prior
from training.loop import Losses, Measures, device_of, option_parser, options_from, rng_of_step, train
from training.unclip.export import restore, write_part
from training.unclip.networks import PRIOR, Reader, draw_timesteps, make_prior, noisy
from training.unclip.sampling import predict_embeddings
from training.unclip.scene_pool import POOL, ScenePool, cached_pool, make_pool, pool_scenes
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.sprites import SpriteSource, fluent_sprites

TEXT_DROPOUT = 0.1


def losses_of_step(prior: Prior, pool: ScenePool, reader: Reader, batch_size: int, step: int) -> Losses:
    rng, device = rng_of_step("prior", step), device_of(prior)
    rows = [rng.randrange(len(pool.scenes)) for _ in range(batch_size)]
    prompts = ["" if rng.random() < TEXT_DROPOUT else caption(pool.scenes[row], rng).text for row in rows]
    x0 = prior.scale(pool.embeddings[rows].to(device))
    timesteps = draw_timesteps(batch_size).to(device)
    text = reader.read(prompts)
    with torch.autocast(device.type, torch.bfloat16):
        guess = prior(noisy(x0, timesteps), timesteps.float(), text.embedding, text.states, text.mask)
    return {"loss": F.mse_loss(guess.float(), x0)}


class Exam:
    """Held-out scenes: how near what the prior makes of their captions is to what CLIP sees in their pictures."""

    def __init__(self, pool: ScenePool, reader: Reader) -> None:
        self._embeddings = pool.embeddings
        self._text = reader.read(
            [caption(scene, random.Random(i), plain=True).text for i, scene in enumerate(pool.scenes)]
        )
        self._blank = reader.read([""] * len(pool.scenes))

    @torch.no_grad()
    def measure(self, prior: Prior) -> Measures:
        measures: Measures = {}
        truth = prior.scale(self._embeddings.to(device_of(prior)))
        for scale in (1.0, PRIOR.diffusion.guidance_scale):
            found = prior.scale(predict_embeddings(prior, self._text, self._blank, guidance_scale=scale))
            measures[f"cosine_{scale:g}"] = _cosine(found, truth)
            measures[f"cosine_other_{scale:g}"] = _cosine(found, truth.roll(1, 0))
        return measures


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other).mean())


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Prior:
    options = options_from(arguments)
    torch.manual_seed(0)
    reader, painter = Reader(device=options.device), Painter(sprites)
    pool = cached_pool(POOL, arguments.num_scenes, reader.clip, painter)
    exam = Exam(make_pool(pool_scenes(64, 1, held_out=True), reader.clip, painter), reader)
    prior = make_prior(pool.embeddings)
    if options.from_weights:
        restore(prior, "prior")
    average = train(
        "unclip_prior",
        prior,
        partial(losses_of_step, prior, pool, reader, options.batch_size),
        options,
        measure=exam.measure,
    )
    if arguments.export:
        write_part("prior", average, PRIOR)
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=2000, batch_size=64, learning_rate=1e-3, ema_decay=0.995, measure_every=200
    )
    parser.add_argument("--num-scenes", type=int, default=24000, help="training scenes, painted once")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
