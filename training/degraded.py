"""What the generator's tokenizer leaves of a picture: what the refiner has to mend.

The exported VQGAN if there is one; else blur and noise that look much like it. Knows no training.
"""

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training import checkpoint
from training.vqgan import WEIGHTS
from training.vqgan_network import Vqgan

# Pictures NCHW in [-1, 1], and a generator for what is random about it.
Degrade = Callable[[Tensor, random.Random], Tensor]


def tokenizer_degrade(weights: Path = WEIGHTS) -> Degrade:
    """Through the VQGAN of the built-in generator, or through `soften` as long as there is none."""
    if not weights.exists():
        return soften
    vqgan = Vqgan()
    checkpoint.load_flax_tensors(vqgan, checkpoint.read_tensors(weights))
    vqgan.eval().requires_grad_(False)

    def tokenise(images: Tensor, _: random.Random) -> Tensor:
        tokens = vqgan.tokens(vqgan.encode(images / 2 + 0.5))
        return (vqgan.decode(vqgan.look_up(tokens)) * 2 - 1).clamp(-1, 1)

    return tokenise


def soften(images: Tensor, rng: random.Random) -> Tensor:
    """A little blur and noise."""
    small = F.interpolate(images, scale_factor=1 / rng.uniform(1, 2.5), mode="area")
    blurred = F.interpolate(small, size=images.shape[2:], mode="bilinear")
    return (blurred + rng.uniform(0, 0.1) * torch.randn_like(blurred)).clamp(-1, 1)
