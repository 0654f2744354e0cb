"""Previews of unfinished images: a linear map from latents to colours, instead of the decoder.

Each latent and its eight neighbours give a small patch of pixels. What a decoder makes of a few random grids is enough
to fit it, so a stage does that while it warms up. It keeps colours and outlines at a thousandth of the cost.
Letters: B grids, h w latents, F features of a latent, H W pixels, p pixels of a patch's side.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8

from services.images.codec import Picture

# Latents that a fit wants to see decoded.
NUM_SAMPLES = 1024
PATCH_SIDES = (4, 2, 1)
# Random latents side by side are unlike pictures, so each quarter of a grid has blocks of another size.
BLOCK_SIDES = ((1, 2), (4, 8))
# Ridge regression: how much the squares of the weights count, of the mean square of the inputs.
OWN_RIDGE, NEIGHBOURS_RIDGE = 1e-2, 1e-3

Grids = Float[np.ndarray, "B h w F"]


@dataclass(frozen=True)
class LatentPreview:
    """First a latent gives a patch by itself; then its neighbours' patches correct it."""

    own: Float[np.ndarray, "F1 P"]
    neighbours: Float[np.ndarray, "P9 P"]

    @classmethod
    def fit(cls, grids: Grids, pictures: UInt8[np.ndarray, "B H W 3"]) -> "LatentPreview":
        """From what a decoder made of the grids."""
        per_latent = pictures.shape[1] // grids.shape[1]
        side = next(side for side in PATCH_SIDES if per_latent % side == 0)
        wanted = rearrange(
            pictures / np.float32(255),
            "b (h p py) (w q px) c -> b h w (p q c) py px",
            h=grids.shape[1],
            w=grids.shape[2],
            p=side,
            q=side,
        ).mean((-2, -1))
        own = _ridge(_with_one(grids), wanted, OWN_RIDGE)
        return cls(own, _ridge(_around(_with_one(grids) @ own), wanted, NEIGHBOURS_RIDGE))

    def pictures(self, grids: Grids) -> list[Picture]:
        """A small picture of each grid."""
        patches = _around(_with_one(grids) @ self.own) @ self.neighbours
        side = round((patches.shape[-1] / 3) ** 0.5)
        pixels = rearrange(patches, "b h w (p q c) -> b (h p) (w q) c", p=side, q=side)
        return list((pixels.clip(0, 1) * 255).astype(np.uint8))


def random_blocks(rng: np.random.Generator, count: int, height: int, width: int) -> Int[np.ndarray, "B h w"]:
    """Grids to decode for a fit: which draw stands where, of `height * width` draws for each grid."""

    def quarter(side: int) -> Int[np.ndarray, "y x"]:
        shape = -(-height // (2 * side)), -(-width // (2 * side))
        draws = rng.integers(0, height * width, shape).repeat(side, 0).repeat(side, 1)
        return draws[: -(-height // 2), : -(-width // 2)]

    grids = [np.block([[quarter(side) for side in row] for row in BLOCK_SIDES]) for _ in range(count)]
    offsets = height * width * np.arange(count)
    return np.stack(grids)[:, :height, :width] + offsets[:, None, None]


def _ridge(
    inputs: Float[np.ndarray, "B h w I"], wanted: Float[np.ndarray, "B h w O"], weight: float
) -> Float[np.ndarray, "I O"]:
    x, y = inputs.reshape(-1, inputs.shape[-1]), wanted.reshape(-1, wanted.shape[-1])
    squares = x.T @ x
    squares += weight * np.trace(squares) / len(squares) * np.eye(len(squares))
    return np.linalg.solve(squares, x.T @ y).astype(np.float32)


def _with_one(grids: Grids) -> Float[np.ndarray, "B h w F1"]:
    return np.concatenate([grids, np.ones((*grids.shape[:3], 1), np.float32)], axis=-1)


def _around(patches: Float[np.ndarray, "B h w P"]) -> Float[np.ndarray, "B h w P9"]:
    """Each patch beside those of its neighbours, and a one."""
    height, width = patches.shape[1:3]
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return _with_one(np.concatenate(shifted, axis=-1))
