"""A pool of scenes as the diffusion sees them: latents of the true pictures and of what the generator makes of them.

Encoding costs more than a step of the UNet does, so the pool is made once, kept in a file that is bound
to the autoencoder it was made with, and drawn from.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from services.refiner.networks.autoencoder import Autoencoder
from training import checkpoint
from training.images import to_tensor
from training.refiner.degradations import Degrade
from training.world.drawing import Painter
from training.world.scenes import WORLDS, Scene, crowded, sample_lesson, sample_scene

# The narrow world's 25 objects are met more often than others, as in the generator's lessons.
NARROW_SHARE = 0.25
# What is small, and stands beside others or looks like another, is mended into that first of all.
LOOKALIKE_SHARE = 0.15
ENCODED_TOGETHER = 8
# Parameters that latents depend on start so.
ENCODING = ("encoder.", "quant_conv.")


@dataclass(frozen=True)
class Pool:
    """Latents at the diffusion's scale, one row a scene."""

    scenes: Sequence[Scene]
    true: Float[Tensor, "N Z h w"]
    degraded: Float[Tensor, "N Z h w"]
    # The share of objects in the pixels of each latent.
    objects: Float[Tensor, "N 1 h w"]


def pool_scenes(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """As many scenes; those to train on are crowded, and some of them of lookalikes."""
    rng = random.Random(seed)
    worlds = [WORLDS["narrow" if rng.random() < NARROW_SHARE else "wide"] for _ in range(count)]
    if held_out:
        return [sample_scene(rng, world, held_out=True) for world in worlds]
    return [sample_lesson(rng, crowded(world), lookalike_share=LOOKALIKE_SHARE) for world in worlds]


@torch.no_grad()
def encode_scenes(
    scenes: Sequence[Scene], autoencoder: Autoencoder, painter: Painter, degrade: Degrade, seed: int
) -> Pool:
    true, degraded, objects = [], [], []
    rng = random.Random(seed)
    for start in range(0, len(scenes), ENCODED_TOGETHER):
        together = scenes[start : start + ENCODED_TOGETHER]
        images = to_tensor([painter.paint(scene) for scene in together])
        with torch.autocast("cpu", torch.bfloat16):
            both = autoencoder.encode(torch.cat([images, degrade(images, together, rng).float()])).mean
        whole, spoilt = autoencoder.to_diffusion(both.float()).chunk(2)
        true.append(whole)
        degraded.append(spoilt)
        masks = torch.from_numpy(np.stack([painter.object_mask(scene) for scene in together]))
        objects.append(F.avg_pool2d(masks[:, None].float(), autoencoder.config.downsampling))
    return Pool(scenes, torch.cat(true), torch.cat(degraded), torch.cat(objects))


def cached_pool(path: Path, count: int, autoencoder: Autoencoder, painter: Painter, degrade: Degrade) -> Pool:
    """The pool in the file at `path`, if it was made with this autoencoder; else makes it and writes it there."""
    scenes = pool_scenes(count, 0, held_out=False)
    key = f"{count} {LOOKALIKE_SHARE} {fingerprint(autoencoder)} {painter.size} {hash_scenes(scenes)}"
    if state := checkpoint.load_if(path, key):
        return Pool(scenes, *(state[name].float() for name in ("true", "degraded", "objects")))
    pool = encode_scenes(scenes, autoencoder, painter, degrade, 0)
    tensors = {"true": pool.true, "degraded": pool.degraded, "objects": pool.objects}
    checkpoint.save(path, key=key, **{name: tensor.half() for name, tensor in tensors.items()})
    return pool


def fingerprint(autoencoder: Autoencoder) -> str:
    """Of what latents depend on: the encoder and their scale. The decoder may go on learning."""
    digest = hashlib.sha256(str(autoencoder.config.scale_factor).encode())
    for name, tensor in autoencoder.state_dict().items():
        if name.startswith(ENCODING):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def hash_scenes(scenes: Sequence[Scene]) -> str:
    """Worlds grow: a pool is of the scenes that it was made of."""
    return hashlib.sha256(repr(scenes).encode()).hexdigest()
