"""3 x 3 convolutions with half the multiplications, for processors: Winograd's F(4, 3) along the rows.

Computes four neighbours of an output row with six products instead of twelve: Lavin and Gray 2016, "Fast Algorithms for
Convolutional Neural Networks". Along one axis alone, since what XLA makes of the sums for both axes costs what it saves.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

# B images, H x W pixels, I O channels in and out; 6 products make a tile of 4.
LAYOUT = ("NHWC", "HWIO", "NHWC")
TILE = 4
# What a convolution of fewer channels saves, the sums take.
FEWEST_CHANNELS = 128
# Large pictures go in strips of so many rows, which stay in a processor's cache between the sums and the products.
STRIP = 16
_INPUT_SUMS = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
_KERNEL_SUMS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT_SUMS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def transform(kernel: Float[np.ndarray, "3 3 I O"]) -> Float[np.ndarray, "6 3 1 I O"]:
    """The kernel as `convolve` wants it: for each point a kernel of one column."""
    return np.einsum("pw,hwio->phio", _KERNEL_SUMS.astype(np.float32), kernel)[:, :, None]


def convolve(points: Float[Array, "6 3 1 I O"], x: Float[Array, "B H W I"]) -> Float[Array, "B H W O"]:
    """Of the input's size, which is a multiple of 4, with zeros around it."""
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 2 * TILE - 1), (0, 0)))
    if height <= 4 * STRIP or height % STRIP:
        return _convolve_strip(points, padded)

    def add_strip(i: Int[Array, ""], out: Float[Array, "B H W O"]) -> Float[Array, "B H W O"]:
        strip = lax.dynamic_slice_in_dim(padded, i * STRIP, STRIP + 2, axis=1)
        return lax.dynamic_update_slice_in_dim(out, _convolve_strip(points, strip), i * STRIP, axis=1)

    return lax.fori_loop(0, height // STRIP, add_strip, jnp.zeros((batch, height, width, points.shape[-1])))


def _convolve_strip(
    points: Float[Array, "6 3 1 I O"], padded: Float[Array, "B _ _ I"]
) -> Float[Array, "B _ _ O"]:
    tiles = padded.shape[2] // TILE - 2
    split = padded.reshape(*padded.shape[:2], tiles + 2, TILE, -1)
    columns = [split[:, :, i // TILE : i // TILE + tiles, i % TILE] for i in range(TILE + 2)]
    products = [
        lax.conv_general_dilated(_sum(row, columns), point, (1, 1), "VALID", dimension_numbers=LAYOUT)
        for row, point in zip(_INPUT_SUMS, points, strict=True)
    ]
    out = jnp.stack([_sum(row, products) for row in _OUTPUT_SUMS], axis=3)
    return out.reshape(*out.shape[:2], TILE * tiles, -1)


def _sum(factors: Int[np.ndarray, " N"], terms: Sequence[Float[Array, "*T"]]) -> Float[Array, "*T"]:
    """Without the terms whose factor is 0."""
    products = (int(factor) * term for factor, term in zip(factors, terms, strict=True) if factor)
    return sum(products, start=jnp.zeros(()))
