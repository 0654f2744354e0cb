"""What tiny-unclip can do, measured:  python -m training.evaluation.unclip_report --seed 1 [--count 64] [--sheet FILE]

Held-out combinations in free-ish English, drawn by the networks as the service runs them, read by the attribute
measure; variations of pictures of such scenes; and mixtures of two pictures, from one end to the other.
Beside the numbers: real pictures reduced to the decoder's size and enlarged, and chance.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.generator.unclip.model import UnclipModel, load_model
from services.generator.unclip.stepper import GenerateJob, ImagePrompt, generate
from services.weights.model_folder import open_model
from training.evaluation.generator_report import contact_sheet, table
from training.images import Picture, contact_sheet as rows_of_pictures
from training.refiner.degradations import resized
from training.world.captions import grammar_caption
from training.world.drawing import Painter
from training.world.scene_reader import Reader, score
from training.world.scenes import NARROW, Scene, sample_scenes
from training.world.sprites import fluent_sprites

NUM_VARIATIONS = 4
NUM_CANDIDATES = 8
SHEET_ROWS = 8
# Of the second picture; the others stand in for steps of the way.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def job_of(model: UnclipModel, prompt: str, **fields: object) -> GenerateJob:
    """With the model's own steps and scales."""
    return replace(
        GenerateJob(
            prompt,
            prior_num_steps=model.prior_diffusion.num_steps,
            decoder_num_steps=model.decoder_diffusion.num_steps,
            super_res_num_steps=model.super_res_diffusion.num_steps if model.super_res else 0,
            prior_guidance_scale=model.prior_diffusion.guidance_scale,
            guidance_scale=model.decoder_diffusion.guidance_scale,
        ),
        **fields,  # type: ignore[arg-type] # fields of GenerateJob
    )


def draw(model: UnclipModel, jobs: Sequence[GenerateJob]) -> list[Picture]:
    """At 128 px, the size that the measure reads."""
    return [resized(picture, 128) for picture in generate(model, jobs)]


def text_table(
    model: UnclipModel, reader: Reader, painter: Painter, scenes: Sequence[Scene], seed: int
) -> tuple[str, list[Picture], list[str]]:
    """The table of pictures from text, with them and their prompts."""
    rng = random.Random(seed)
    captions = [grammar_caption(scene, rng) for scene in scenes]
    mentions = [spoken.mentions for spoken in captions]
    started = time.monotonic()
    pictures = draw(
        model,
        [job_of(model, spoken.text, seed=seed * 1000003 + i) for i, spoken in enumerate(captions)],
    )
    seconds = (time.monotonic() - started) / len(scenes)
    size = model.decoder.config.image_size
    reduced = [
        resized(
            np.asarray(Image.fromarray(painter.paint(scene)).resize((size, size), Image.Resampling.BOX)), 128
        )
        for scene in scenes
    ]
    readings = reader.read(np.stack(pictures))
    columns = {
        "from text": score(reader, scenes, readings, mentions),
        "real ones, reduced and enlarged": score(reader, scenes, reader.read(np.stack(reduced)), mentions),
        "chance": score(reader, scenes, readings[1:] + readings[:1], mentions),
    }
    note = f"{len(scenes)} held-out prompts, seed {seed}; {seconds:.2f} s a picture."
    return f"{table(columns)}\n\n{note}", pictures, [spoken.text for spoken in captions]


def variation_table(
    model: UnclipModel, reader: Reader, painter: Painter, scenes: Sequence[Scene], seed: int
) -> tuple[str, list[list[Picture]]]:
    """Variations without a word; and rows of pictures: the original, then its variations."""
    originals = [painter.paint(scene) for scene in scenes]
    seeds = [
        [seed * 1000003 + i * NUM_VARIATIONS + j for j in range(NUM_VARIATIONS)] for i in range(len(scenes))
    ]
    drawn = draw(
        model,
        [
            job_of(model, "", seed=each, image_prompts=(ImagePrompt(original),))
            for original, row in zip(originals, seeds, strict=True)
            for each in row
        ],
    )
    wanted = [scene for scene in scenes for _ in range(NUM_VARIATIONS)]
    readings = reader.read(np.stack(drawn))
    shares = score(reader, wanted, readings)
    kept = np.mean([_layout(a) == _layout(b.scene) for a, b in zip(wanted, readings, strict=True)])
    families = [drawn[i : i + NUM_VARIATIONS] for i in range(0, len(drawn), NUM_VARIATIONS)]
    differ = np.mean([_distance(family) for family in families])
    lines = [
        "| place | name | name and colour | layout kept | variations differ by |",
        "|---" * 5 + "|",
        f"| {shares['place']:.3f} | {shares['name']:.3f} | {shares['name and colour']:.3f} "
        f"| {kept:.2f} | {differ:.1f} of 255 |",
    ]
    return "\n".join(lines), [
        [original, *family] for original, family in zip(originals, families, strict=True)
    ]


def mixture_table(
    model: UnclipModel, reader: Reader, painter: Painter, scenes: Sequence[Scene], seed: int
) -> tuple[str, list[list[Picture]]]:
    """How often each end's things are there, along the way from one picture to the other."""
    pairs = list(zip(scenes[::2], scenes[1::2], strict=False))
    originals = [[painter.paint(scene) for scene in pair] for pair in pairs]
    columns = []
    lines = ["| share of the second | names of the first | names of the second |", "|---" * 3 + "|"]
    for share in SHARES:
        drawn = draw(
            model,
            [
                job_of(
                    model,
                    "",
                    seed=seed * 1000003 + i,
                    image_prompts=(ImagePrompt(first, 1 - share), ImagePrompt(second, share)),
                )
                for i, (first, second) in enumerate(originals)
            ],
        )
        readings = reader.read(np.stack(drawn))
        names = [score(reader, [pair[end] for pair in pairs], readings)["name"] for end in (0, 1)]
        lines.append(f"| {share:g} | {names[0]:.3f} | {names[1]:.3f} |")
        columns.append(drawn)
    rows = [
        [first, *row, second]
        for (first, second), row in zip(originals, zip(*columns, strict=True), strict=True)
    ]
    return "\n".join(lines), rows


def seconds_of_candidates(model: UnclipModel) -> float:
    """Eight candidates of one prompt, all phases."""
    jobs = [job_of(model, "a red house by the sea", seed=i) for i in range(NUM_CANDIDATES)]
    generate(model, [replace(job, prior_num_steps=2, decoder_num_steps=2) for job in jobs])
    started = time.monotonic()
    generate(model, jobs)
    return time.monotonic() - started


def _layout(scene: Scene) -> list[tuple[str, str, str]]:
    return sorted((o.name, o.slot, o.size) for o in scene.objects)


def _distance(pictures: Sequence[Picture]) -> float:
    """Mean absolute difference over all pairs, of 255."""
    pairs = combinations(pictures, 2)
    return float(np.mean([np.abs(a.astype(np.float32) - b).mean() for a, b in pairs]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="tiny-unclip", help="name or folder of the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=64, help="prompts to draw from text")
    parser.add_argument("--num-varied", type=int, default=24, help="pictures to vary and to mix")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", type=Path, default=Path("build/quality/unclip.png"))
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    model = load_model(open_model(options.generator, "generator")[0])
    painter = Painter(fluent_sprites())
    reader = Reader(painter, NARROW)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    scenes = sample_scenes(options.count, options.seed, NARROW, held_out=True)
    report, pictures, prompts = text_table(model, reader, painter, scenes, options.seed)
    print(report)
    contact_sheet(pictures[:32], prompts[:32]).save(options.sheet)
    print(f"Contact sheet: {options.sheet}")
    print(f"Eight candidates: {seconds_of_candidates(model):.1f} s with {options.threads} threads\n")
    if varied := sample_scenes(options.num_varied, options.seed + 1, NARROW, held_out=True):
        for name, measure in (("variations", variation_table), ("mixtures", mixture_table)):
            report, rows = measure(model, reader, painter, varied, options.seed)
            sheet = options.sheet.with_name(f"unclip_{name}.png")
            rows_of_pictures(rows[:SHEET_ROWS]).save(sheet)
            print(f"{report}\n\n{name.capitalize()} of {len(varied)} pictures: {sheet}\n")


if __name__ == "__main__":
    main()
