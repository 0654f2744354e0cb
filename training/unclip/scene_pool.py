"""Scenes as the decoder and the prior see them: small pictures and their CLIP embeddings.

Painting costs as much as a training step does, so the pool is made once and kept in a file that is bound to
the CLIP it was made with.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from services.pytorch.clip import Clip, normalize_image
from training import checkpoint
from training.images import to_tensor
from training.loop import OUTPUT_FOLDER, device_of
from training.world.drawing import Painter
from training.world.scenes import NARROW, Scene, sample_lesson, sample_scene

POOL = OUTPUT_FOLDER / "unclip" / "pool.pt"
SMALL_PX = 32
LOOKALIKE_SHARE = 0.1
ENCODED_TOGETHER = 32


@dataclass(frozen=True)
class ScenePool:
    """One row a scene."""

    scenes: Sequence[Scene]
    small: UInt8[Tensor, "N 3 32 32"]
    object_mask: Float[Tensor, "N 1 32 32"]  # how much of each pixel is an object
    embeddings: Float[Tensor, "N K"]


def pool_scenes(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    rng = random.Random(seed)
    if held_out:
        return [sample_scene(rng, NARROW, held_out=True) for _ in range(count)]
    return [sample_lesson(rng, NARROW, lookalike_share=LOOKALIKE_SHARE) for _ in range(count)]


@torch.no_grad()
def make_pool(scenes: Sequence[Scene], clip: Clip, painter: Painter) -> ScenePool:
    small, masks, embeddings = [], [], []
    for start in range(0, len(scenes), ENCODED_TOGETHER):
        pictures = [painter.paint(scene) for scene in scenes[start : start + ENCODED_TOGETHER]]
        images = normalize_image(to_tensor(pictures) / 2 + 0.5)
        embeddings.append(clip.encode_image(images.to(device_of(clip))).cpu())
        small += [np.asarray(reduced(Image.fromarray(picture))) for picture in pictures]
        for scene in scenes[start : start + ENCODED_TOGETHER]:
            mask = Image.fromarray(painter.object_mask(scene).astype(np.uint8) * 255)
            masks.append(np.asarray(reduced(mask)))
    return ScenePool(
        scenes,
        torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.stack(masks))[:, None].float() / 255,
        torch.cat(embeddings),
    )


def cached_pool(path: Path, count: int, clip: Clip, painter: Painter) -> ScenePool:
    """The pool in the file at `path`, if it was made with this CLIP; else makes it and writes it there."""
    scenes = pool_scenes(count, 0, held_out=False)
    key = f"{count} {LOOKALIKE_SHARE} {fingerprint(clip.visual)}"
    if state := checkpoint.load_if(path, key):
        return ScenePool(scenes, state["small"], state["mask"].float(), state["embeddings"])
    pool = make_pool(scenes, clip, painter)
    checkpoint.save(
        path,
        key=key,
        small=pool.small,
        mask=pool.object_mask.half(),
        embeddings=pool.embeddings,
    )
    return pool


def fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def reduced(picture: Image.Image) -> Image.Image:
    """As the decoder draws it: means of squares of pixels."""
    return picture.resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
