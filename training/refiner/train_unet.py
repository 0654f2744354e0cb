"""Trains the refiner's UNet: noise in latents, conditioned on the timestep and the caption.

    python -m training.refiner.train_unet --steps 4000 --resume --export

Most of the later timesteps start from a picture that the generator resampled in part, and are to end at the true one:
so refining mends what the generator broke. The text encoder is the exported one, frozen.
Needs: the sprites, the exported `bert` and `autoencoder`, 1 GB of memory, about 0.5 CPU seconds a step.
Reached: in 6,800 CPU seconds, as many objects named on the generator's pictures after refining as before (.978), more of
them in their colour, and all nearer to a scene (training/NOTES.md).
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from services.refiner.networks.autoencoder import Autoencoder, AutoencoderConfig
from services.refiner.networks.diffusion import (
    NUM_TRAIN_TIMESTEPS,
    make_schedule,
    start_sampler,
    train_alphas_cumprod,
)
from services.refiner.networks.text_encoder import TextEncoder
from services.refiner.networks.unet import UNet, UNetConfig
from services.refiner.text.tokenizer import Tokenizer
from training.export import load_exported, write_part
from training.generator.train_vqgan import WEIGHTS
from training.images import contact_sheet, object_psnr, to_pictures
from training.loop import (
    OUTPUT_FOLDER,
    Losses,
    Measures,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.refiner.degradations import sketch_degrade
from training.refiner.latent_pool import Pool, cached_pool, encode_scenes, pool_scenes
from training.refiner.train_text_encoder import load_encoder
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.sprites import SpriteSource, fluent_sprites

CONFIG = UNetConfig(
    in_channels=8,
    out_channels=8,
    model_channels=64,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_ds=(2,),
    num_heads=4,
    context_dim=192,
    guided_channels=8,
    norm_groups=8,
    num_steps=25,
    skip_ratio=0.76,  # the variations of .6 differ more, and are hardly worse
    guidance_scale=1.5,
)
UNCONDITIONAL_SHARE = 0.1
# Refining starts between these timesteps: most steps learn what comes after that.
FIRST_START, LAST_START, SEEN_MOSTLY = 250, 500, 0.9
# Of those steps, this share starts from a sketch; the others from the true picture.
MENDING_SHARE = 0.75
# Backgrounds fill most of a picture and are learned soon; objects are what people look at.
OBJECT_WEIGHT = 4.0
# What sheets and measures refine with.
NUM_STEPS, NUM_SKIPPED = 25, 15


def draw_timesteps(rng: random.Random) -> tuple[int, int]:
    """A timestep, and the one that refining began at with a sketch; 0 for none."""
    if rng.random() > SEEN_MOSTLY:
        return rng.randrange(NUM_TRAIN_TIMESTEPS), 0
    start = rng.randint(FIRST_START, LAST_START)
    return rng.randint(0, start), start if rng.random() < MENDING_SHARE else 0


class DiffusionLoss:
    """Makes batches: noisy latents, timesteps, conditioning, targets."""

    def __init__(self, pool: Pool, encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        self._pool = pool
        self._encoder = encoder
        self._tokenizer = tokenizer
        self._alphas_cumprod = torch.from_numpy(train_alphas_cumprod()).float()

    def draw(self, batch_size: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Noised latents, timesteps, contexts, the right answers, and how much each latent weighs."""
        rows = [rng.randrange(len(self._pool.scenes)) for _ in range(batch_size)]
        prompts = [
            "" if rng.random() < UNCONDITIONAL_SHARE else caption(self._pool.scenes[row], rng).text
            for row in rows
        ]
        timesteps, starts = zip(*(draw_timesteps(rng) for _ in rows), strict=True)
        x, answer = self.noisy(rows, torch.tensor(timesteps), torch.tensor(starts))
        weight = 1 + OBJECT_WEIGHT * self._pool.objects[rows]
        return x, torch.tensor(timesteps).float(), self.context(prompts), answer, weight

    def noisy(self, rows: Sequence[int], timesteps: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents on the way from a sketch to the true picture, and the noise that leads to the true one.

        Refining began at the timestep in `starts` with the sketch and much noise. A sampler that answers rightly keeps
        the noise and what is wrong with the sketch in one proportion, so the answer is the same all the way down.
        A start of 0 means that the true picture was noised.
        """
        true = self._pool.true[list(rows)]
        wrong = self._pool.degraded[list(rows)] - true
        alpha, alpha_start = (rearrange(self._alphas_cumprod[t], "b -> b 1 1 1") for t in (timesteps, starts))
        is_mended = rearrange(starts > 0, "b -> b 1 1 1")
        noise = torch.randn_like(true)
        answer = noise + is_mended * wrong * (alpha_start / (1 - alpha_start)).sqrt()
        return alpha.sqrt() * true + (1 - alpha).sqrt() * answer, answer

    @torch.no_grad()
    def context(self, prompts: Sequence[str]) -> Tensor:
        tokens = torch.from_numpy(self._tokenizer.encode(prompts))
        return self._encoder(tokens.to(device_of(self._encoder))).cpu()


def losses_of_step(unet: UNet, teacher: DiffusionLoss, batch_size: int, step: int) -> Losses:
    device = device_of(unet)
    x, timesteps, context, answer, weight = (
        tensor.to(device) for tensor in teacher.draw(batch_size, rng_of_step("unet", step))
    )
    with torch.autocast(device.type, torch.bfloat16):
        guess = unet(x, timesteps, context)
    return {"loss": (weight * (guess.float() - answer) ** 2).mean() / weight.mean()}


class UNetEvaluation:
    """Held-out scenes to measure on, and how to refine them as the service does."""

    def __init__(
        self, painter: Painter, pool: Pool, autoencoder: Autoencoder, teacher: DiffusionLoss
    ) -> None:
        self._pool = pool
        self._autoencoder = autoencoder
        self._teacher = teacher
        rng = random.Random(2)
        self._prompts = [caption(scene, rng).text for scene in pool.scenes]
        self._truth = [painter.paint(scene) for scene in pool.scenes]
        self._masks = [painter.object_mask(scene) for scene in pool.scenes]

    @torch.no_grad()
    def measure(self, unet: UNet) -> Measures:
        """The loss with the caption, without and with another's: the first alarm if the text is not listened to."""
        measures: Measures = {}
        count = len(self._prompts)
        others = self._prompts[1:] + self._prompts[:1]
        for name, prompts in (("caption", self._prompts), ("none", [""] * count), ("shuffled", others)):
            torch.manual_seed(0)
            losses = []
            for t in (150, 300, 450):
                timesteps = torch.full((count,), t)
                x, answer = self._teacher.noisy(range(count), timesteps, torch.full((count,), LAST_START))
                guess = self._guess(unet, x, timesteps.float(), self._teacher.context(prompts))
                losses.append(float(F.mse_loss(guess, answer)))
            measures[f"loss_{name}"] = sum(losses) / len(losses)
        before = to_pictures(self.decode(self._pool.degraded))
        measures["object_psnr_before_db"] = object_psnr(before, self._truth, self._masks)
        refined = to_pictures(self.refine(unet))
        measures["object_psnr_refined_db"] = object_psnr(refined, self._truth, self._masks)
        return measures

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents."""
        chunks = torch.split(self._autoencoder.from_diffusion(latents), 8)
        device = device_of(self._autoencoder)
        return torch.cat([self._autoencoder.decode(chunk.to(device)).cpu() for chunk in chunks])

    def _guess(self, unet: UNet, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        device = device_of(unet)
        with torch.autocast(device.type, torch.bfloat16):
            return unet(x.to(device), timesteps.to(device), context.to(device)).float().cpu()

    @torch.no_grad()
    def refine(self, unet: UNet, *, guidance_scale: float = 1.0, num_skipped: int = NUM_SKIPPED) -> Tensor:
        """All of them at once, from their degraded latents; decoded."""
        noise = torch.randn(self._pool.true.shape, generator=torch.Generator().manual_seed(3))
        schedule = make_schedule(NUM_STEPS)
        samplers = [
            start_sampler(schedule, n, init, num_skipped)
            for n, init in zip(noise, self._pool.degraded, strict=True)
        ]
        context = self._teacher.context(self._prompts)
        blank = self._teacher.context([""] * len(self._prompts))
        while not samplers[0].is_finished:
            x = torch.stack([sampler.point for sampler in samplers])
            timesteps = torch.full((len(x),), samplers[0].timestep)
            eps = self._guess(unet, x, timesteps, context)
            if guidance_scale != 1.0:
                uncond = self._guess(unet, x, timesteps, blank)
                eps = uncond + guidance_scale * (eps - uncond)
            samplers = [sampler.advance(e) for sampler, e in zip(samplers, eps, strict=True)]
        return self.decode(torch.stack([sampler.pred_xstart for sampler in samplers]))

    def sheet(self, unet: UNet) -> Image.Image:
        """Truth, what refining starts from, refined, and refined with guidance."""
        rows = [
            self._truth[:10],
            to_pictures(self.decode(self._pool.degraded[:10])),
            to_pictures(self.refine(unet)[:10]),
            to_pictures(self.refine(unet, guidance_scale=2.0)[:10]),
        ]
        return contact_sheet(rows)


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> UNet:
    options = options_from(arguments)
    torch.manual_seed(0)
    autoencoder = load_exported("refiner", "autoencoder", Autoencoder, AutoencoderConfig)
    autoencoder.eval().requires_grad_(False)
    encoder, tokenizer = load_encoder()
    painter = Painter(sprites, autoencoder.config.image_size)
    degrade = sketch_degrade(arguments.tokenizer_weights)
    pool = cached_pool(
        OUTPUT_FOLDER / "unet" / "pool.pt", arguments.num_scenes, autoencoder, painter, degrade
    )
    held_out = pool_scenes(arguments.num_measured, 1, held_out=True)
    exam_pool = encode_scenes(held_out, autoencoder, painter, degrade, 1)
    exam = UNetEvaluation(painter, exam_pool, autoencoder, DiffusionLoss(exam_pool, encoder, tokenizer))
    unet = load_exported("refiner", "unet", UNet, UNetConfig) if options.from_weights else UNet(CONFIG)
    average = train(
        "unet",
        unet,
        partial(losses_of_step, unet, DiffusionLoss(pool, encoder, tokenizer), options.batch_size),
        options,
        measure=exam.measure,
        sheet=exam.sheet,
    )
    if arguments.export:
        write_part("refiner", "unet", average, asdict(average.config))
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=4000, batch_size=16, learning_rate=1e-3, ema_decay=0.999, measure_every=500
    )
    parser.add_argument("--num-scenes", type=int, default=1000, help="training scenes, encoded once")
    parser.add_argument("--num-measured", type=int, default=24, help="held-out scenes to measure on")
    parser.add_argument(
        "--tokenizer-weights", type=Path, default=WEIGHTS, help="of the VQGAN whose pictures are to be mended"
    )
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
