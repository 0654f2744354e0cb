"""Measures the exported refiner as the service runs it, over settings: what it keeps, sharpens and varies.

    python -m training.evaluation.refiner_report --num-scenes 32 --skip-ratios 0.5 0.6 0.7 --guidance-scales 1 2

Starts from sketches of held-out scenes with the generator's mistakes, so that the truth is known. Prints one line a
setting, beside the line of the pictures before refining.
"""

import argparse
import json
import random
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

from services.refiner.model import RefinerModel, load_model
from services.refiner.stepper import RefineJob, refine
from training.export import model_folder
from training.generator.train_vqgan import WEIGHTS
from training.images import Picture, contact_sheet, object_psnr, psnr, to_pictures, to_tensor
from training.refiner.degradations import SKETCH_PX, resized, sketch_degrade
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.scene_reader import Reader, score
from training.world.scenes import WORLDS, World, sample_scenes
from training.world.sprites import SpriteSource, fluent_sprites

SHEET_FOLDER = Path("build/training/refiner_report")
SHEET_COLUMNS = 10


class Report:
    def __init__(
        self,
        sprites: SpriteSource,
        model: RefinerModel,
        world: World,
        num_scenes: int,
        seed: int,
        tokenizer_weights: Path,
    ) -> None:
        rng = random.Random(seed)
        self._model = model
        # Pictures are read at the sketches' size, and compared with the truth at the refiner's.
        self._reader = Reader(Painter(sprites, SKETCH_PX), world)
        painter = Painter(sprites, model.image_size)
        self._scenes = sample_scenes(num_scenes, seed, world, held_out=True)
        captions = [caption(scene, rng) for scene in self._scenes]
        self._prompts = [c.text for c in captions]
        self._mentions = [c.mentions for c in captions]
        self.truth = [painter.paint(scene) for scene in self._scenes]
        self._masks = [painter.object_mask(scene) for scene in self._scenes]
        degrade = sketch_degrade(tokenizer_weights)
        with torch.no_grad():
            self.before = to_pictures(degrade(to_tensor(self.truth), self._scenes, rng))

    def refined(
        self, *, num_steps: int, skip_ratio: float, guidance_scale: float, seed: int
    ) -> list[Picture]:
        """One variation of each."""
        return refine(
            self._model,
            [
                RefineJob(
                    prompt,
                    init_image=picture,
                    seed=seed + i,
                    num_steps=num_steps,
                    skip_ratio=skip_ratio,
                    guidance_scale=guidance_scale,
                )
                for i, (prompt, picture) in enumerate(zip(self._prompts, self.before, strict=True))
            ],
        )

    def measure(self, pictures: list[Picture]) -> dict[str, float]:
        readings = self._reader.read(np.stack([resized(picture, SKETCH_PX) for picture in pictures]))
        measures = {
            "object_psnr_db": object_psnr(pictures, self.truth, self._masks),
            "psnr_db": psnr(pictures, self.truth),
            "residual": float(np.mean([reading.residual for reading in readings])),
            **score(self._reader, self._scenes, readings, self._mentions),
        }
        return {key: round(value, 3) for key, value in measures.items()}

    def variation(self, runs: list[list[Picture]]) -> float:
        """Mean absolute difference of two variations of a picture, of 255."""
        pairs = [
            np.abs(a.astype(np.float32) - b).mean()
            for one, other in combinations(runs, 2)
            for a, b in zip(one, other, strict=True)
        ]
        return round(float(np.mean(pairs)), 2)


def run(arguments: argparse.Namespace, sprites: SpriteSource, model: RefinerModel) -> None:
    world = WORLDS[arguments.world]
    report = Report(sprites, model, world, arguments.num_scenes, arguments.seed, arguments.tokenizer_weights)
    print(json.dumps({"setting": "truth", **report.measure(report.truth)}), flush=True)
    print(json.dumps({"setting": "before", **report.measure(report.before)}), flush=True)
    rows = [report.truth[:SHEET_COLUMNS], report.before[:SHEET_COLUMNS]]
    for skip_ratio, guidance_scale in product(arguments.skip_ratios, arguments.guidance_scales):
        runs = [
            report.refined(
                num_steps=arguments.num_steps, skip_ratio=skip_ratio, guidance_scale=guidance_scale, seed=seed
            )
            for seed in (0, 10_000)
        ]
        setting = f"steps {arguments.num_steps} skip {skip_ratio:g} guidance {guidance_scale:g}"
        measures = {"variation": report.variation(runs), **report.measure(runs[0])}
        print(json.dumps({"setting": setting, **measures}), flush=True)
        rows += [pictures[:SHEET_COLUMNS] for pictures in runs]
    SHEET_FOLDER.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(SHEET_FOLDER / "sheet.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-scenes", type=int, default=32)
    parser.add_argument("--world", choices=sorted(WORLDS), default="narrow")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-steps", type=int, default=25)
    parser.add_argument("--skip-ratios", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--tokenizer-weights", type=Path, default=WEIGHTS, help="of the generator's VQGAN")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites(), load_model(model_folder("refiner")))


if __name__ == "__main__":
    main()
