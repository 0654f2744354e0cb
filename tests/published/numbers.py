"""Random weights by name, fast: each tensor begins at a place of its own in one block of normal numbers."""

import zlib
from collections.abc import Iterator
from functools import cache
from math import prod

import numpy as np

# Odd, so that rows of a tensor are not each other's copies.
BLOCK = 2**22 + 1


@cache
def _block() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(BLOCK, np.float32)


def pieces(
    name: str, shape: tuple[int, ...], dtype: str, *, scale: float, offset: float = 0
) -> Iterator[np.ndarray]:
    """The tensor's numbers in order, some at a time."""
    left, at = prod(shape), zlib.crc32(name.encode()) % BLOCK
    while left:
        piece = _block()[at : at + left]
        yield (piece * np.float32(scale) + np.float32(offset)).astype(dtype)
        left, at = left - len(piece), 0


def tensor(name: str, shape: tuple[int, ...], dtype: str, *, scale: float, offset: float = 0) -> np.ndarray:
    joined = np.concatenate([*pieces(name, shape, dtype, scale=scale, offset=offset)] or [np.empty(0, dtype)])
    return joined.reshape(shape)
