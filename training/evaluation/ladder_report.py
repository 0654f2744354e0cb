"""Measures the ladder of the built-in models, 128 -> 256 -> 1024 px: what each rung keeps, mends and costs.

    python -m training.evaluation.ladder_report --count 24 --world wide

Held-out scenes, whose truth is known, go through the autoencoder; sketches of them with the generator's mistakes go
through the refiner and the upscaler as the services run them. Then the four services make pictures of a prompt, for
the time and the memory. Writes two contact sheets. Prints Markdown tables.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.refiner.model import RefinerModel, load_model
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from training.export import load_exported, model_folder
from training.images import Picture, contact_sheet, object_psnr, psnr, to_pictures, to_tensor
from training.photographs import measured_photographs
from training.refiner.degradations import generator_degrade, resized
from training.refiner.refined_pictures import RefinedPictures
from training.refiner.train_autoencoder import reconstruct
from training.upscaler.train_swinir import (
    REFINED_PX,
    Pair,
    TrainingImages,
    enlarge,
    enlarge_with,
    measure,
    shrink,
    soften,
)
from training.world.drawing import Painter
from training.world.scenes import WORLDS, Scene, sample_scenes
from training.world.sprites import SpriteSource, fluent_sprites
from triptych.cli.processes import running_pipeline
from triptych.client import Client
from triptych.spec import make_spec

PROMPT = "a red house under a full moon"
STAGES = ("generator", "refiner", "upscaler")
SHEET_COLUMNS, ENLARGED_COLUMNS = 8, 3


class Ladder:
    """Held-out scenes at every rung."""

    def __init__(
        self, model: RefinerModel, sprites: SpriteSource, scenes: Sequence[Scene], seed: int
    ) -> None:
        rng = random.Random(seed)
        self.scenes = scenes
        painter = Painter(sprites, model.image_size)
        self.truth = [painter.paint(scene) for scene in scenes]
        self.masks = [painter.object_mask(scene) for scene in scenes]
        self.decoded = to_pictures(reconstruct(model.autoencoder, to_tensor(self.truth)))
        pictures = RefinedPictures(model, generator_degrade(), sprites)
        sketches = pictures.sketch(scenes, rng)
        self.sketches = [resized(sketch, model.image_size) for sketch in sketches]
        self.refined = pictures.refine(scenes, sketches, rng)

    def rows(self) -> dict[str, Sequence[Picture]]:
        return {
            "through the autoencoder": self.decoded,
            "sketches, enlarged": self.sketches,
            "sketches, refined": self.refined,
        }

    def table(self) -> str:
        lines = [f"| {len(self.scenes)} held-out scenes | objects, dB | pictures, dB |", "|---|---|---|"]
        for name, pictures in self.rows().items():
            objects = object_psnr(pictures, self.truth, self.masks)
            lines.append(f"| {name} | {objects:.2f} | {psnr(pictures, self.truth):.2f} |")
        return "\n".join(lines)

    def sheet(self) -> Image.Image:
        """Truth, then a row for each rung."""
        return contact_sheet([row[:SHEET_COLUMNS] for row in (self.truth, *self.rows().values())])


def corpus_of(ladder: Ladder, sprites: SpriteSource, seed: int) -> TrainingImages:
    """The refined pictures, the same scenes sharp, and softened."""
    rng = random.Random(seed)
    painter = Painter(sprites, REFINED_PX)
    larges = [painter.paint(scene) for scene in ladder.scenes]
    refined = [Pair(large, small) for large, small in zip(larges, ladder.refined, strict=True)]
    sharp = [Pair(large, shrink(large)) for large in larges]
    return TrainingImages(refined, sharp, [Pair(pair.large, soften(pair.small, rng)) for pair in sharp], ())


def upscaler_table(corpus: TrainingImages, network: SwinIR) -> str:
    lines = ["| x4 | gain, or share |", "|---|---|"]
    for name, value in measure(corpus, measured_photographs(), network).items():
        shown = f"{value:+.2f} dB" if name.endswith("_db") else f"{value:.2f}"
        lines.append(f"| {name.removesuffix('_db').replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def enlarged_sheet(corpus: TrainingImages, network: SwinIR) -> Image.Image:
    """Lanczos, ours and the truth of refined pictures, at half of their size."""
    pairs = corpus.refined[:ENLARGED_COLUMNS]
    rows = [
        [enlarge_with(Image.Resampling.LANCZOS, pair.small) for pair in pairs],
        [enlarge(network, pair.small) for pair in pairs],
        [pair.large for pair in pairs],
    ]
    return contact_sheet([[np.asarray(Image.fromarray(p).reduce(2)) for p in row] for row in rows])


async def cost_table(num_runs: int = 2) -> str:
    """Wall time of the last of several runs, prompt -> 8 -> 8 -> 1, and the most memory that each process had."""
    async with running_pipeline({name: ["--port", "0"] for name in STAGES}) as pipeline:
        async with Client(pipeline.gateway.address) as client:
            for seed in range(num_runs):
                started = time.monotonic()
                await client.run(make_spec(PROMPT, seed=seed))
                seconds = time.monotonic() - started
        memory = {child.name: peak_gb(child.process.pid) for child in pipeline.children}
    lines = ["| prompt -> 8 -> 8 -> 1, warm | |", "|---|---|", f"| time | {seconds:.1f} s |"]
    return "\n".join([*lines, *(f"| {name}, peak memory | {gb:.2f} GB |" for name, gb in memory.items())])


def peak_gb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", choices=sorted(WORLDS), nargs="+", default=["narrow", "wide"])
    parser.add_argument("--no-cost", action="store_true", help="start no services")
    parser.add_argument("--folder", type=Path, default=Path("build/quality"), help="of the contact sheets")
    options = parser.parse_args(arguments)

    sprites = fluent_sprites()
    model = load_model(model_folder("refiner"))
    network = load_exported("upscaler", "swinir", SwinIR, SwinIRConfig).eval()
    options.folder.mkdir(parents=True, exist_ok=True)
    for world in options.worlds:
        scenes = sample_scenes(options.count, options.seed, WORLDS[world], held_out=True)
        ladder = Ladder(model, sprites, scenes, options.seed)
        corpus = corpus_of(ladder, sprites, options.seed)
        print(f"World: {world}\n\n{ladder.table()}\n\n{upscaler_table(corpus, network)}\n", flush=True)
        ladder.sheet().save(options.folder / f"ladder-{world}.png")
        enlarged_sheet(corpus, network).save(options.folder / f"enlarged-{world}.png")
    if not options.no_cost:
        print(asyncio.run(cost_table()))
    print(f"Contact sheets: {options.folder}")


if __name__ == "__main__":
    main()
