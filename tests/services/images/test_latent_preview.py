"""A glimpse of what a decoder would make, with decoders that are known."""

import numpy as np
import pytest

from services.images.latent_preview import LatentPreview, random_blocks

SIDE, FEATURES = 16, 6


def decode(grids: np.ndarray, px_per_latent: int) -> np.ndarray:
    """A curved one that looks a little beyond its own latent."""
    weights = np.random.default_rng(1).standard_normal((FEATURES, 3)) / FEATURES**0.5
    blurred = (2 * grids + np.roll(grids, 1, 1) + np.roll(grids, 1, 2)) / 4
    colours = 1 / (1 + np.exp(-2 * blurred @ weights))
    pixels = colours.repeat(px_per_latent, 1).repeat(px_per_latent, 2)
    return (255 * pixels).astype(np.uint8)


def draw(seed: int, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((count * SIDE**2, FEATURES), np.float32)
    return draws[random_blocks(rng, count, SIDE, SIDE)]


@pytest.mark.parametrize(("px_per_latent", "side_px"), [(16, 64), (8, 64), (4, 64), (2, 32), (1, 16)])
def test_a_glimpse_is_near_what_is_decoded(px_per_latent, side_px):
    grids = draw(0)
    glimpse = LatentPreview.fit(grids, decode(grids, px_per_latent))
    unseen = draw(7, count=1)
    (picture,) = glimpse.pictures(unseen)
    assert picture.shape == (side_px, side_px, 3)
    assert picture.dtype == np.uint8
    scale = side_px // SIDE
    truth = decode(unseen, 1)[0].repeat(scale, 0).repeat(scale, 1)
    error, spread = picture.astype(float) - truth, truth - truth.mean((0, 1))
    assert np.square(error).mean() < 0.1 * np.square(spread).mean()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (4, 4), (5, 12), (1, 3)])
def test_blocks_fill_grids_of_any_shape_and_each_grid_has_its_own_draws(height, width):
    grids = random_blocks(np.random.default_rng(0), 3, height, width)
    assert grids.shape == (3, height, width)
    assert [set(np.unique(grid // (height * width))) for grid in grids] == [{0}, {1}, {2}]
