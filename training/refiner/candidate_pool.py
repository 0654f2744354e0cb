"""Pictures that the built-in generator draws for training prompts, eight for each: what CLIP will have to rank.

The attribute measure reads them, so it is known which fit their prompt best. Drawn freely and without guidance, for it is
the generator's mistakes that are to be seen. 0.25 CPU seconds a picture, so they are kept in a file.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from services.generator.dalle.model import Model, load_model
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.stepper import generate
from training import checkpoint
from training.export import model_folder
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.scene_reader import Reader, Reading, score
from training.world.scenes import NARROW, Scene, SceneObject, sample_scenes

NUM_CANDIDATES = 8
# One prompt in three has some wrong candidates; as the service draws, one in twelve.
SAMPLING = SamplingDefaults(temperature=0.9, top_k=0, top_p=1.0, guidance_scale=1.0)
DRAWN_TOGETHER = 16
SEED = 3


@dataclass(frozen=True)
class CandidatePool:
    """N prompts: the scene asked for, and of each of its pictures what can be seen on it and how well that fits."""

    wanted: Sequence[Scene]
    pictures: UInt8[Tensor, "N 8 3 H W"]
    shown: Sequence[Sequence[Scene]]
    fits: Float[Tensor, "N 8"]


def make_pool(model: Model, painter: Painter, count: int) -> CandidatePool:
    wanted = sample_scenes(count, SEED, NARROW)
    rng = random.Random(SEED)
    pictures = np.stack(
        generate(
            model,
            [prompt for scene in wanted for prompt in [caption(scene, rng).text] * NUM_CANDIDATES],
            [rng.getrandbits(32) for _ in range(count * NUM_CANDIDATES)],
            sampling=SAMPLING,
            num_slots=DRAWN_TOGETHER,
        )
    )
    reader = Reader(painter, NARROW)
    readings = reader.read(pictures)
    rows = [readings[i : i + NUM_CANDIDATES] for i in range(0, len(readings), NUM_CANDIDATES)]
    return CandidatePool(
        wanted,
        rearrange(torch.from_numpy(pictures), "(n c) h w rgb -> n c rgb h w", c=NUM_CANDIDATES),
        [[reading.scene for reading in row] for row in rows],
        torch.tensor([[fit(reader, scene, r) for r in row] for scene, row in zip(wanted, rows, strict=True)]),
    )


def fit(reader: Reader, wanted: Scene, reading: Reading) -> float:
    """How much of what a prompt wants is seen: what there is and in which colour, and a little for how many."""
    found = score(reader, [wanted], [reading])
    return found["name"] + found.get("name and colour", 0) + 0.1 * found["count"]


def cached_pool(path: Path, painter: Painter, count: int) -> CandidatePool | None:
    """The pool in the file at `path`, if this generator drew it; else makes it. None if there is no generator yet."""
    folder = model_folder("generator")
    if not (folder / "manifest.json").exists():
        return None
    key = f"{count} {SAMPLING} {hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"
    if state := checkpoint.load_if(path, key):
        return CandidatePool(
            [_scene(s) for s in json.loads(state["wanted"])],
            state["pictures"],
            [[_scene(s) for s in row] for row in json.loads(state["shown"])],
            state["fits"],
        )
    pool = make_pool(load_model(folder), painter, count)
    checkpoint.save(
        path,
        key=key,
        wanted=json.dumps([asdict(scene) for scene in pool.wanted]),
        pictures=pool.pictures,
        shown=json.dumps([[asdict(scene) for scene in row] for row in pool.shown]),
        fits=pool.fits,
    )
    return pool


def _scene(raw: Mapping[str, Any]) -> Scene:
    return Scene(**{**raw, "objects": tuple(SceneObject(**o) for o in raw["objects"])})
