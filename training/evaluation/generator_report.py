"""What the built-in family can do, measured:  python -m training.evaluation.generator_report --seed 1 [--count 256] [--sheet FILE]

Held-out combinations in free-ish English, drawn by the networks as the services run them, read by the attribute measure.
Beside each number: the tokenizer's ceiling (real pictures, only tokenized) and chance (readings of other prompts).
With --family-count also what ranking, refining and enlarging add (`family_quality`): eight pictures a prompt.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from services.generator.dalle.model import Model, load_model
from services.generator.dalle.networks import vqgan
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.stepper import generate
from services.refiner.model import load_model as load_refiner
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.weights.model_folder import open_model
from training.evaluation import pipeline_report
from training.export import load_exported, model_folder
from training.generator.train_vqgan import psnr
from training.world.captions import Caption, grammar_caption
from training.world.drawing import Painter
from training.world.scene_reader import ATTRIBUTES, Reader, score
from training.world.scenes import WORLDS, sample_scenes
from training.world.sprites import fluent_sprites

COLUMNS, LABEL_PX = 8, 34


def tokenized(model: Model, pictures: UInt8[np.ndarray, "B H W 3"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Real pictures through the tokenizer and back: the best that the transformer could draw."""

    @jax.jit
    def through(pixels: jax.Array) -> jax.Array:
        tokens = vqgan.quantize(model.vqgan_params, vqgan.encode(model.vqgan_params, pixels))
        return vqgan.to_uint8(vqgan.decode(model.vqgan_params, vqgan.look_up(model.vqgan_params, tokens)))

    return np.concatenate([np.asarray(through(jnp.asarray(picture[None] / 255.0))) for picture in pictures])


def contact_sheet(pictures: Sequence[UInt8[np.ndarray, "H W 3"]], prompts: Sequence[str]) -> Image.Image:
    """Pictures in rows, each with its prompt below it."""
    size = pictures[0].shape[0]
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (size + 4), rows * (size + LABEL_PX)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for i, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x, y = i % COLUMNS * (size + 4), i // COLUMNS * (size + LABEL_PX)
        sheet.paste(Image.fromarray(picture), (x, y))
        for line, text in enumerate(_wrapped(prompt, font, size)[:3]):
            draw.text((x + 1, y + size + 1 + 10 * line), text, "black", font)
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def table(columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table: attributes down, columns across."""
    lines = ["| Attribute | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for attribute in ATTRIBUTES:
        cells = [f"{column[attribute]:.3f}" if attribute in column else "" for column in columns.values()]
        lines.append(f"| {attribute} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure_generator(
    model: Model,
    reader: Reader,
    painter: Painter,
    *,
    world: str,
    seed: int,
    count: int,
    sampling: SamplingDefaults,
) -> tuple[str, list[UInt8[np.ndarray, "H W 3"]], list[Caption]]:
    """The table of the generator alone, with its pictures and their captions."""
    scenes = sample_scenes(count, seed, WORLDS[world], held_out=True)
    rng = random.Random(seed)
    captions = [grammar_caption(scene, rng) for scene in scenes]
    mentions = [spoken.mentions for spoken in captions]
    started = time.monotonic()
    pictures = generate(
        model,
        [spoken.text for spoken in captions],
        [seed * 1000003 + i for i in range(count)],
        sampling=sampling,
    )
    seconds = time.monotonic() - started
    readings = reader.read(np.stack(pictures))
    real = np.stack([painter.paint(scene) for scene in scenes])
    masks = np.stack([painter.object_mask(scene) for scene in scenes])
    through = tokenized(model, real)
    through_readings = reader.read(through)
    columns = {
        "generator": score(reader, scenes, readings, mentions),
        "tokenizer's ceiling": score(reader, scenes, through_readings, mentions),
        "chance": score(reader, scenes, readings[1:] + readings[:1], mentions),
    }
    notes = (
        f"{count} held-out prompts, seed {seed}; guidance {sampling.guidance_scale}, temperature "
        f"{sampling.temperature}, top_k {sampling.top_k}; {seconds / count:.2f} s a picture.\n"
        f"Tokenizer: {psnr(through, real):.2f} dB, objects {psnr(through, real, masks):.2f} dB. Residual of the "
        f"measure: generator {np.mean([r.residual for r in readings]):.2f}, tokenized "
        f"{np.mean([r.residual for r in through_readings]):.2f} grey levels."
    )
    return f"{table(columns)}\n\n{notes}", pictures, captions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--family-count", type=int, default=64, help="prompts for the other stages; 0: none")
    parser.add_argument("--skip-ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.76])
    parser.add_argument("--world", choices=sorted(WORLDS), default="narrow")
    parser.add_argument("--generator", default="tiny", help="name or folder of the generator's model")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--sheet", type=Path, default=Path("build/quality/generator.png"))
    options = parser.parse_args(arguments)

    model = load_model(open_model(options.generator, "generator")[0])
    sampling = SamplingDefaults(
        temperature=model.sampling.temperature if options.temperature is None else options.temperature,
        top_k=model.sampling.top_k if options.top_k is None else options.top_k,
        top_p=model.sampling.top_p,
        guidance_scale=model.sampling.guidance_scale
        if options.guidance_scale is None
        else options.guidance_scale,
    )
    sprites = fluent_sprites()
    painter = Painter(sprites, model.vqgan_config.resolution)
    reader = Reader(painter, WORLDS[options.world])
    report, pictures, captions = measure_generator(
        model, reader, painter, world=options.world, seed=options.seed, count=options.count, sampling=sampling
    )
    print(report)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures[:32], [spoken.text for spoken in captions[:32]]).save(options.sheet)
    print(f"Contact sheet: {options.sheet}\n")
    if options.family_count:
        torch.set_num_threads(1)
        refined_sheet = options.sheet.with_name("refined.png")
        print(
            pipeline_report.report(
                model,
                load_refiner(model_folder("refiner")),
                load_exported("upscaler", "swinir", SwinIR, SwinIRConfig),
                reader,
                sprites,
                WORLDS[options.world],
                num_prompts=options.family_count,
                seed=options.seed,
                skip_ratios=options.skip_ratios,
                sheet=refined_sheet,
            )
        )
        print(f"Before and after refining: {refined_sheet}")


if __name__ == "__main__":
    main()
