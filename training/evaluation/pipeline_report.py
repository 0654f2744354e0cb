"""What the three stages do together, measured on the generator's own pictures of held-out prompts.

Candidates of each prompt, ranked by the family's CLIP; variations of the first one by the refiner at several skip
ratios; one of them enlarged. Every picture is read by the attribute measure, at the generator's size.
`python -m training.evaluation.generator_report` prints it.
"""

import random
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from services.generator.dalle.model import Model
from services.generator.dalle.stepper import generate
from services.refiner.clip_scores import rank
from services.refiner.model import RefinerModel
from services.refiner.stepper import RefineJob, refine
from services.upscaler.networks.swinir import SwinIR
from training.images import Picture, contact_sheet, object_psnr, psnr
from training.photographs import measured_photographs
from training.refiner.candidate_pool import NUM_CANDIDATES, fit
from training.refiner.degradations import generator_degrade, resized
from training.refiner.refined_pictures import RefinedPictures
from training.upscaler.train_swinir import (
    UPSCALE,
    enlarge,
    enlarge_with,
    make_corpus,
    measure,
)
from training.world.captions import grammar_caption
from training.world.drawing import Painter
from training.world.scene_reader import Reader, Reading, score
from training.world.scenes import World, sample_scenes
from training.world.sprites import SpriteSource

NUM_VARIATIONS = 4
NUM_STEPS = 25
GUIDANCE_SCALE = 1.5
SHEET_ROWS = 6


class Candidates:
    """Several pictures of each of some held-out prompts, and what can be read off them."""

    def __init__(self, model: Model, reader: Reader, world: World, *, num_prompts: int, seed: int) -> None:
        self.reader = reader
        self.scenes = sample_scenes(num_prompts, seed, world, held_out=True)
        rng = random.Random(seed)
        captions = [grammar_caption(scene, rng) for scene in self.scenes]
        self.prompts = [spoken.text for spoken in captions]
        self._mentions = [spoken.mentions for spoken in captions]
        pictures = generate(
            model,
            [prompt for prompt in self.prompts for _ in range(NUM_CANDIDATES)],
            [seed * 1000003 + i for i in range(num_prompts * NUM_CANDIDATES)],
        )
        readings = reader.read(np.stack(pictures))
        each = range(0, len(pictures), NUM_CANDIDATES)
        self.pictures = [pictures[i : i + NUM_CANDIDATES] for i in each]
        self.readings = [readings[i : i + NUM_CANDIDATES] for i in each]

    def score(self, readings: Sequence[Reading]) -> dict[str, float]:
        """The measure's attributes of one picture for each prompt."""
        return score(self.reader, self.scenes, readings, self._mentions)


def rerank_table(candidates: Candidates, refiner: RefinerModel) -> str:
    """One sample, the best by CLIP, and the best by the measure itself, which no ranking can beat."""
    singles = [
        candidates.score([row[column] for row in candidates.readings]) for column in range(NUM_CANDIDATES)
    ]
    by_clip, by_measure = [], []
    for scene, prompt, pictures, readings in zip(
        candidates.scenes, candidates.prompts, candidates.pictures, candidates.readings, strict=True
    ):
        by_clip.append(readings[int(np.argmax(rank(refiner, prompt, pictures)))])
        by_measure.append(max(readings, key=partial(fit, candidates.reader, scene)))
    mean = {name: float(np.mean([single[name] for single in singles])) for name in singles[0]}
    return _table(
        f"{len(candidates.prompts)} prompts, {NUM_CANDIDATES} candidates each",
        {
            "one candidate": mean,
            "the best by CLIP": candidates.score(by_clip),
            "the best by the measure": candidates.score(by_measure),
        },
    )


def refine_table(
    candidates: Candidates, refiner: RefinerModel, painter: Painter, skip_ratios: Sequence[float]
) -> tuple[str, list[list[Picture]]]:
    """The first candidates before and after refining, all variations of them, and example pictures.

    `painter` draws at the refiner's size. Of the pictures, a row a prompt: before, then the first variation at each
    skip ratio.
    """
    before = [row[0] for row in candidates.pictures]
    enlarged = [resized(picture, painter.size) for picture in before]
    rows = {"before": _row(candidates, painter, enlarged)}
    columns = [enlarged]
    for skip_ratio in skip_ratios:
        jobs = [
            RefineJob(
                prompt,
                init_image=picture,
                seed=i * NUM_VARIATIONS + variation,
                num_steps=NUM_STEPS,
                skip_ratio=skip_ratio,
                guidance_scale=GUIDANCE_SCALE,
            )
            for i, (prompt, picture) in enumerate(zip(candidates.prompts, before, strict=True))
            for variation in range(NUM_VARIATIONS)
        ]
        refined = refine(refiner, jobs)
        families = [refined[i : i + NUM_VARIATIONS] for i in range(0, len(refined), NUM_VARIATIONS)]
        # Each n-th variation is a picture for every prompt.
        each = [_row(candidates, painter, pictures) for pictures in zip(*families, strict=True)]
        rows[f"skip {skip_ratio:g}"] = {
            **{name: float(np.mean([row[name] for row in each])) for name in each[0]},
            "variations differ by": float(np.mean([_distance(family) for family in families])),
        }
        columns.append([family[0] for family in families])
    note = f"{len(before)} pictures of the generator, {NUM_STEPS} steps, guidance {GUIDANCE_SCALE:g}"
    return _table(note, rows), [list(row) for row in zip(*columns, strict=True)]


def _row(candidates: Candidates, painter: Painter, pictures: Sequence[Picture]) -> dict[str, float]:
    """What is read off pictures of the painter's size."""
    small = candidates.pictures[0][0].shape[0]
    readings = candidates.reader.read(np.stack([resized(picture, small) for picture in pictures]))
    nearest = [reading.scene for reading in readings]
    row = {
        **candidates.score(readings),
        "residual": float(np.mean([reading.residual for reading in readings])),
    }
    if shown := [i for i, scene in enumerate(nearest) if scene.objects]:
        row["objects, dB to the nearest scene"] = object_psnr(
            [pictures[i] for i in shown],
            [painter.paint(nearest[i]) for i in shown],
            [painter.object_mask(nearest[i]) for i in shown],
        )
    return row


def _distance(pictures: Sequence[Picture]) -> float:
    """Mean absolute difference over all pairs, of 255."""
    pairs = combinations(pictures, 2)
    return float(np.mean([np.abs(a.astype(np.float32) - b).mean() for a, b in pairs]))


@torch.no_grad()
def enlarge_table(
    candidates: Candidates,
    refined: Sequence[Picture],
    refiner: RefinerModel,
    network: SwinIR,
    sprites: SpriteSource,
    *,
    count: int,
) -> str:
    """dB gained over Lanczos and bicubic where the truth is known, and nearer to what the generator must have meant.

    `refined` are the generator's own pictures after refining, one a prompt.
    """
    refine_scenes = RefinedPictures(refiner, generator_degrade(), sprites).make
    corpus = make_corpus(sprites, refine_scenes, count, seed=1, held_out=True)
    found = measure(corpus, measured_photographs(), network)
    own = refined[:count]
    painter = Painter(sprites, UPSCALE * own[0].shape[0])
    meant = [painter.paint(row[0].scene) for row in candidates.readings[:count]]
    found["the pipeline's own, over Lanczos, to the nearest scene_db"] = psnr(
        [enlarge(network, picture) for picture in own], meant
    ) - psnr([enlarge_with(Image.Resampling.LANCZOS, picture) for picture in own], meant)
    lines = ["| x4 | gain, or share |", "|---|---|"]
    for name, value in found.items():
        shown = f"{value:+.2f} dB" if name.endswith("_db") else f"{value:.2f}"
        lines.append(f"| {name.removesuffix('_db').replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def report(
    model: Model,
    refiner: RefinerModel,
    network: SwinIR,
    reader: Reader,
    sprites: SpriteSource,
    world: World,
    *,
    num_prompts: int,
    seed: int,
    skip_ratios: Sequence[float],
    sheet: Path,
    num_enlarged: int = 16,
) -> str:
    """All three tables; writes a sheet of pictures before and after refining."""
    candidates = Candidates(model, reader, world, num_prompts=num_prompts, seed=seed)
    reranked = rerank_table(candidates, refiner)
    large = Painter(sprites, refiner.image_size)
    refined, rows = refine_table(candidates, refiner, large, skip_ratios)
    contact_sheet(rows[:SHEET_ROWS]).save(sheet)
    enlarged = enlarge_table(
        candidates, [row[-1] for row in rows], refiner, network, sprites, count=num_enlarged
    )
    return "\n\n".join([reranked, refined, enlarged])


def _table(note: str, rows: dict[str, dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| {note} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, row in rows.items():
        cells = [f"{row[name]:.3f}" if name in row else "" for name in names]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
