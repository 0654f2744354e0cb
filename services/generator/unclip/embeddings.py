"""Arithmetic on CLIP embeddings: mixtures of pictures, and steps from one text's meaning to another's.

All along great circles, as the paper on hierarchical generation has it; lengths go over in a straight line.
Dimension key: K CLIP width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Two embeddings that point the same way have no great circle between them: then the straight line is as good.
SMALLEST_ANGLE = 1e-4


def mix(embeddings: Sequence[Float[Tensor, "1 K"]], weights: Sequence[float]) -> Float[Tensor, "1 K"]:
    """One after another by spherical interpolation, each by its share of the weights so far.

    Of two, weights 1 and 3 give the point three quarters of the way to the second.
    """
    pairs = [(embedding, weight) for embedding, weight in zip(embeddings, weights, strict=True) if weight]
    mixed, total = pairs[0]
    for embedding, weight in pairs[1:]:
        total += weight
        mixed = slerp(mixed, embedding, weight / total)
    return mixed


def shift(
    embedding: Float[Tensor, "1 K"], difference: Float[Tensor, "1 K"], weight: float
) -> Float[Tensor, "1 K"]:
    """Turns the embedding towards a difference of texts by a share of the way, and keeps its length."""
    length = embedding.norm(dim=-1, keepdim=True)
    towards = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-8) * length
    return slerp(embedding, towards, weight)


def slerp(a: Float[Tensor, "1 K"], b: Float[Tensor, "1 K"], share: float) -> Float[Tensor, "1 K"]:
    """From a (share 0) to b (share 1)."""
    length_a, length_b = (v.norm(dim=-1, keepdim=True).clamp_min(1e-8) for v in (a, b))
    cosine = ((a / length_a) * (b / length_b)).sum(dim=-1, keepdim=True).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if float(angle.max()) < SMALLEST_ANGLE:
        return torch.lerp(a, b, share)
    weight_a, weight_b = torch.sin((1 - share) * angle), torch.sin(share * angle)
    direction = (weight_a * a / length_a + weight_b * b / length_b) / torch.sin(angle).clamp_min(1e-8)
    return direction * torch.lerp(length_a, length_b, share)
