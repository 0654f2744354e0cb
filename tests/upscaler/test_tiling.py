"""Cutting and padding: which pixels the network sees, and that nothing is left out or kept twice."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from services.errors import InvalidRequest
from services.upscaler.tiling import cut, pad
from tests.upscaler.conftest import random_picture

sizes = st.integers(1, 40).map(lambda n: 8 * n)


@given(sizes, sizes, st.integers(2, 20).map(lambda n: 8 * n), st.data())
def test_every_pixel_is_kept_by_exactly_one_tile(
    height: int, width: int, tile_size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile_size - 8))
    kept = np.zeros((height, width), int)
    for tile in cut(height, width, tile_size=tile_size, tile_overlap=overlap, window_size=8):
        kept[
            tile.rows.keep_start : tile.rows.keep_stop, tile.columns.keep_start : tile.columns.keep_stop
        ] += 1
    assert (kept == 1).all()


@given(sizes, st.integers(2, 20).map(lambda n: 8 * n), st.data())
def test_tiles_see_what_they_keep_start_on_the_window_grid_and_are_alike_and_small_enough(
    size: int, tile_size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile_size - 8))
    spans = [tile.rows for tile in cut(size, 8, tile_size=tile_size, tile_overlap=overlap, window_size=8)]
    assert len({span.stop - span.start for span in spans}) == 1
    assert spans[0].stop - spans[0].start <= tile_size
    for span in spans:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= size
        assert span.start % 8 == 0


@given(sizes, st.integers(2, 20).map(lambda n: 8 * n), st.data())
def test_neighbours_share_at_least_the_overlap_and_each_drops_half_of_it(
    size: int, tile_size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tile_size - 8))
    spans = [tile.rows for tile in cut(size, 8, tile_size=tile_size, tile_overlap=overlap, window_size=8)]
    for one, other in pairwise(spans):
        assert one.stop - other.start >= overlap
        assert min(one.stop - one.keep_stop, other.keep_start - other.start) >= overlap // 2


def test_a_picture_in_one_piece_is_one_tile() -> None:
    tiles = cut(24, 40, tile_size=0, tile_overlap=0, window_size=8)
    assert [tile.shape for tile in tiles] == [(24, 40)]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (2, 3), (7, 9), (8, 8), (9, 13), (255, 256)])
def test_padding_fills_whole_windows_and_adds_at_least_a_pixel(height: int, width: int) -> None:
    padded = pad(random_picture(height, width), window_size=8)
    assert padded.shape == (8 * (height // 8 + 1), 8 * (width // 8 + 1), 3)


def test_padding_mirrors_with_the_edge_pixel() -> None:
    image = random_picture(6, 8)
    padded = pad(image, window_size=8)
    assert (padded[6:8, :8] == image[:3:-1]).all()
    assert (padded[:6, 8:] == image[:, ::-1]).all()


def test_a_picture_of_one_pixel_is_padded_with_that_pixel() -> None:
    image = random_picture(1, 1)
    assert (pad(image, window_size=8) == image).all()


@pytest.mark.parametrize(
    ("tile_size", "tile_overlap", "field"),
    [
        (-8, 0, "tile_size"),
        (8, 0, "tile_size"),
        (100, 0, "tile_size"),
        (520, 0, "tile_size"),
        (64, -1, "tile_overlap"),
        (64, 57, "tile_overlap"),
        (64, 64, "tile_overlap"),
        (0, -1, "tile_overlap"),
    ],
)
def test_a_tiling_that_cannot_be_served_is_refused_by_the_name_of_its_field(
    tile_size: int, tile_overlap: int, field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cut(64, 64, tile_size=tile_size, tile_overlap=tile_overlap, window_size=8)
    assert refused.value.field == field


def test_one_piece_beyond_the_largest_tile_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidRequest, match="ask for tiles"):
        cut(64, 128, tile_size=0, tile_overlap=0, window_size=8, max_tile_size=120)
