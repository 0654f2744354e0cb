"""Cuts an image into tiles with context, and joins the results without a seam.

Neighbours share at least `tile_overlap` pixels and each keeps its half of them: the rim of a tile, which the network
saw without its surroundings, is dropped rather than averaged in. Tiles start on the network's window grid, so a pixel
has the same window neighbours in a tile as in the whole picture.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import UInt8

from services.errors import InvalidRequest
from services.images.tiles import check_tiling, padded_size

DEFAULT_TILE_SIZE = 160
DEFAULT_TILE_OVERLAP = 32
MAX_TILE_SIZE = 512


@dataclass(frozen=True)
class Span:
    """Along one axis, in pixels of the padded picture: what a tile sees and what it keeps of that."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True)
class Tile:
    rows: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def pad(image: UInt8[np.ndarray, "H W 3"], *, window_size: int) -> UInt8[np.ndarray, "H_pad W_pad 3"]:
    """Adds 1 to `window_size` mirrored pixels below and to the right, as the reference's script does.

    It mirrors with the edge pixel and at most once; what a picture smaller than that still lacks is then reflected
    without the edge pixel, as the reference's network does.
    """
    for axis in (0, 1):
        size = image.shape[axis]
        padded = padded_size(size, window_size)
        image = _pad_axis(image, axis, min(padded - size, size), "symmetric")
        image = _pad_axis(image, axis, padded - image.shape[axis], "reflect")
    return image


def cut(
    height: int,
    width: int,
    *,
    tile_size: int,
    tile_overlap: int,
    window_size: int,
    max_tile_size: int = MAX_TILE_SIZE,
) -> list[Tile]:
    """Covers a padded picture with tiles of one shape, none larger than `tile_size`, row by row.

    Raises InvalidRequest as `check_tiling` does, and when a picture in one piece would be too large for that.
    """
    check_tiling(tile_size, tile_overlap, multiple=window_size, max_tile_size=max_tile_size)
    if tile_size == 0:
        if max(height, width) > max_tile_size:
            raise InvalidRequest(
                "tile_size",
                f"the picture in one piece would be a tile of {width}x{height} pixels, at most {max_tile_size} a side "
                f"are possible; ask for tiles, such as {DEFAULT_TILE_SIZE}",
            )
        return [Tile(Span(0, height, 0, height), Span(0, width, 0, width))]
    rows = _spans(height, tile_size, tile_overlap, window_size)
    columns = _spans(width, tile_size, tile_overlap, window_size)
    return [Tile(row, column) for row in rows for column in columns]


def _spans(size: int, tile_size: int, tile_overlap: int, window_size: int) -> list[Span]:
    overlap = _round_up(tile_overlap, window_size)
    count = max(1, -(-(size - overlap) // (tile_size - overlap)))
    # As few tiles as it takes, and then as small as they can be.
    length = min(size, _round_up(-(-(size + (count - 1) * overlap) // count), window_size))
    starts = [i * (size - length) // max(1, count - 1) // window_size * window_size for i in range(count)]
    cuts = [(start + previous + length) // 2 for previous, start in pairwise(starts)]
    return [
        Span(start, start + length, keep_start, keep_stop)
        for start, keep_start, keep_stop in zip(starts, [0, *cuts], [*cuts, size], strict=True)
    ]


def _pad_axis(image: np.ndarray, axis: int, amount: int, mode: str) -> np.ndarray:
    widths = [(0, 0)] * 3
    widths[axis] = (0, amount)
    return np.pad(image, widths, mode=mode)  # type: ignore[call-overload]  # numpy types each mode's literal


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
