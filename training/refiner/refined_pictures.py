"""Sketches of scenes with the generator's mistakes, and what the refiner's service makes of them.

The truth of every picture is known, so these are what the upscaler learns on and what reports measure on.
"""

import random
from collections.abc import Sequence

from services.refiner.model import RefinerModel
from services.refiner.stepper import RefineJob, refine
from training.images import Picture, to_pictures, to_tensor
from training.refiner.degradations import SKETCH_PX, Degrade
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.scenes import Scene
from training.world.sprites import SpriteSource

MADE_TOGETHER = 8


class RefinedPictures:
    """Makes sketches and refines them, each with one of the given settings; by default with the model's own."""

    def __init__(
        self,
        model: RefinerModel,
        degrade: Degrade,
        sprites: SpriteSource,
        *,
        skip_ratios: Sequence[float] = (),
        guidance_scales: Sequence[float] = (),
    ) -> None:
        self._model = model
        self._degrade = degrade
        self._painter = Painter(sprites, SKETCH_PX)
        config = model.unet.config
        self._skip_ratios = skip_ratios or (config.skip_ratio,)
        self._guidance_scales = guidance_scales or (config.guidance_scale,)

    def sketch(self, scenes: Sequence[Scene], rng: random.Random) -> list[Picture]:
        """Sketches of 128 px."""
        sketches: list[Picture] = []
        for start in range(0, len(scenes), MADE_TOGETHER):
            together = scenes[start : start + MADE_TOGETHER]
            images = to_tensor([self._painter.paint(scene) for scene in together])
            sketches += to_pictures(self._degrade(images, together, rng))
        return sketches

    def refine(
        self, scenes: Sequence[Scene], sketches: Sequence[Picture], rng: random.Random
    ) -> list[Picture]:
        """One variation of each sketch, at the refiner's size, with a caption of its scene."""
        jobs = [
            RefineJob(
                caption(scene, rng).text,
                init_image=sketch,
                seed=rng.getrandbits(32),
                num_steps=self._model.unet.config.num_steps,
                skip_ratio=rng.choice(self._skip_ratios),
                guidance_scale=rng.choice(self._guidance_scales),
            )
            for scene, sketch in zip(scenes, sketches, strict=True)
        ]
        refined: list[Picture] = []
        for start in range(0, len(jobs), MADE_TOGETHER):
            refined += refine(self._model, jobs[start : start + MADE_TOGETHER])
        return refined

    def make(self, scenes: Sequence[Scene], rng: random.Random) -> list[Picture]:
        """Sketches, then one variation of each."""
        return self.refine(scenes, self.sketch(scenes, rng), rng)
