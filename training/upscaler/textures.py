"""Pictures without a camera whose statistics are those of photographs: dead leaves with grain.

Discs and polygons of every size cover one another (Lee, Mumford and Huang, 2001), each filled with a colour, a slow
gradient and a grain of 1/f noise. An upscaler trained on scenes alone loses to bicubic on
photographs; some of these beside the scenes keep it honest, and no photograph has to be licensed.
"""

import math
import random

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFilter

from training.images import Picture

NUM_LEAVES = 420
SMALLEST_RADIUS, LARGEST_RADIUS = 0.012, 0.4  # of the side
# Photographs have backgrounds that are soft in truth: an upscaler must not sharpen every edge that it sees.
OUT_OF_FOCUS_SHARE = 0.5


def dead_leaves(rng: random.Random, size_px: int) -> Picture:
    """One picture, drawn at twice its size and halved: edges as soft as a lens leaves them."""
    side = 2 * size_px
    canvas = np.asarray(_leaves(rng, side)).astype(np.float32)
    noise_rng = np.random.default_rng(rng.getrandbits(64))
    grain = pink_noise(noise_rng, side, slope=rng.uniform(0.6, 1.5))
    # Which leaf a pixel lies on decides how strongly it is grained: smooth skies beside rough bark.
    roughness = 3 + 37 * (canvas[..., :1] * 0.37 + canvas[..., 2:] * 0.73) % 60 / 60
    textured = canvas + grain[..., None] * roughness * rng.uniform(0.1, 1.2)
    whole = Image.fromarray(textured.clip(0, 255).astype(np.uint8))
    picture = whole.resize((size_px, size_px), Image.Resampling.BOX)
    if rng.random() < OUT_OF_FOCUS_SHARE:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8) * size_px / 256))
    return np.asarray(picture)


def pink_noise(rng: np.random.Generator, side: int, *, slope: float) -> Float[np.ndarray, "H W"]:
    """Noise of unit variance whose amplitude falls as frequency to the power of -slope."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    amplitude = np.hypot(rows, columns)
    amplitude[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) * amplitude**-slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def _leaves(rng: random.Random, side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), _colour(rng))
    draw = ImageDraw.Draw(picture)
    leaves = [_radius(rng) * side for _ in range(NUM_LEAVES)]
    for radius in leaves:
        x, y = rng.random() * side, rng.random() * side
        if rng.random() < 0.5:
            draw.ellipse(
                (x - radius, y - radius * rng.uniform(0.3, 1), x + radius, y + radius), fill=_colour(rng)
            )
        else:
            corners = sorted(rng.random() * math.tau for _ in range(rng.randint(3, 7)))
            points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in corners]
            draw.polygon(points, fill=_colour(rng))
    return picture


def _radius(rng: random.Random) -> float:
    """The density falls as the square of the radius: more large leaves than a self-similar picture has."""
    u = rng.random()
    return 1 / (u / SMALLEST_RADIUS + (1 - u) / LARGEST_RADIUS)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    """Mostly muted, as surfaces are."""
    grey, spread = rng.uniform(15, 240), rng.choice((12, 30, 80))
    r, g, b = (round(min(255, max(0, grey + rng.gauss(0, spread)))) for _ in range(3))
    return r, g, b
