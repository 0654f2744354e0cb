"""Trains tiny-unclip's prior: a picture's CLIP embedding from the text.

    python -m training.unclip.train_prior --minutes 8 --resume --export

It predicts the scaled embedding itself. One text in ten is left empty, for guidance. What it predicts is asked for the
whole content: else places and weathers, which make up little of an embedding, are learnt late.
Needs: tiny-unclip's exported CLIP, the decoder's pool of scenes, 1 GB of memory, about 0.2 CPU seconds a step.
"""

import argparse
import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.generator.unclip.networks.prior import Prior
from training.loop import Losses, Measures, device_of, options_from, rng_of_step, train
from training.unclip.export import restore, write_part
from training.unclip.lessons import PLAIN_ATTENTION, read_lessons, run_on_lessons
from training.unclip.networks import PRIOR, Reader, draw_timesteps, make_prior, noisy
from training.unclip.sampling import predict_embeddings
from training.unclip.scene_pool import ScenePool
from training.unclip.train_clip import ContentProbe
from training.world.captions import caption
from training.world.sprites import SpriteSource

TEXT_DROPOUT = 0.1
THINGS_WEIGHT, SETTINGS_WEIGHT = 0.04, 0.06


class ProbedPrior(nn.Module):
    """What is trained: the prior, and the probe that asks its guesses. It learns from the pictures' own embeddings."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        self.content = ContentProbe(prior.config.embed_dim)


def losses_of_step(
    probed: ProbedPrior, pool: ScenePool, reader: Reader, batch_size: int, step: int
) -> Losses:
    prior = probed.prior
    rng, device = rng_of_step("prior", step), device_of(prior)
    rows = [rng.randrange(len(pool.scenes)) for _ in range(batch_size)]
    prompts = ["" if rng.random() < TEXT_DROPOUT else caption(pool.scenes[row], rng).text for row in rows]
    x0 = prior.scale(pool.embeddings[rows].to(device))
    timesteps = draw_timesteps(batch_size).to(device)
    text = reader.read(prompts)
    with torch.autocast(device.type, torch.bfloat16), PLAIN_ATTENTION():
        guess = prior(noisy(x0, timesteps), timesteps.float(), text.embedding, text.states, text.mask)
    error = F.mse_loss(guess.float(), x0)
    scenes = [pool.scenes[row] for row in rows]
    told = [bool(prompt) for prompt in prompts]
    asked = F.normalize(prior.unscale(guess.float()), dim=-1)[told]
    known = [scene for scene, is_told in zip(scenes, told, strict=True) if is_told]
    true = F.normalize(pool.embeddings[rows].to(device), dim=-1)
    # The probe learns from true embeddings, the prior from a probe that stands still.
    content = probed.content
    learnt = content.things_loss(true, scenes) + content.settings_loss(true, scenes)
    content.requires_grad_(False)
    things, settings = content.things_loss(asked, known), content.settings_loss(asked, known)
    content.requires_grad_(True)
    loss = error + learnt + THINGS_WEIGHT * things + SETTINGS_WEIGHT * settings
    return {"loss": loss, "error": error, "probe": learnt, "things": things, "settings": settings}


class Exam:
    """Held-out scenes: how near what the prior makes of their captions is to what CLIP sees in their pictures."""

    def __init__(self, pool: ScenePool, reader: Reader) -> None:
        self._embeddings = pool.embeddings
        self._scenes = pool.scenes
        self._text = reader.read(
            [caption(scene, random.Random(i), plain=True).text for i, scene in enumerate(pool.scenes)]
        )
        self._blank = reader.read([""] * len(pool.scenes))

    @torch.no_grad()
    def measure(self, probed: ProbedPrior) -> Measures:
        prior = probed.prior
        truth = F.normalize(self._embeddings.to(device_of(prior)), dim=-1)
        measures: Measures = {f"true_{k}": v for k, v in probed.content.right(truth, self._scenes).items()}
        truth = prior.scale(self._embeddings.to(device_of(prior)))
        for scale in (1.0, PRIOR.diffusion.guidance_scale):
            drawn = predict_embeddings(prior, self._text, self._blank, guidance_scale=scale)
            found = prior.scale(drawn)
            measures[f"cosine_{scale:g}"] = _cosine(found, truth)
            measures[f"cosine_other_{scale:g}"] = _cosine(found, truth.roll(1, 0))
            right = probed.content.right(F.normalize(drawn, dim=-1), self._scenes)
            measures |= {f"{name}_{scale:g}": value for name, value in right.items()}
        return measures


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other).mean())


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> Prior:
    options, lessons = options_from(arguments), read_lessons(arguments, sprites, num_measured=64)
    prior = make_prior(lessons.pool.embeddings)
    if options.from_weights:
        restore(prior, "prior")
    probed = ProbedPrior(prior)
    average = train(
        "unclip_prior",
        probed,
        partial(losses_of_step, probed, lessons.pool, lessons.reader, options.batch_size),
        options,
        measure=Exam(lessons.measured, lessons.reader).measure,
    ).prior
    if arguments.export:
        write_part("prior", average, PRIOR)
    return average


if __name__ == "__main__":
    run_on_lessons(
        run, __doc__, batch_size=64, steps=5000, learning_rate=1.2e-3, ema_decay=0.995, measure_every=200
    )
