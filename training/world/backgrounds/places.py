"""Draws the ground of each place: sea, beach, desert, mountains, forest, city, meadow, snow, hill, road, space.

All lengths are fractions of the picture's width.
"""

import math
import random

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.86, 0.8), "night": (0.6, 0.62, 0.86)}
# Where the ground begins.
HORIZON = {
    "sea": 0.62, "beach": 0.52, "desert": 0.66, "mountains": 0.7,
    "forest": 0.72, "city": 0.74, "meadow": 0.64, "snow": 0.66, "hill": 0.7, "road": 0.62, "space": 0.8,
}  # fmt: skip


class Land:
    """A picture to draw land on, in the light of a time of day; coordinates are fractions of its width."""

    def __init__(self, picture: Image.Image, time: str) -> None:
        self.size = picture.width
        self.time = time
        self._draw = ImageDraw.Draw(picture)

    def lit(self, colour: RGB) -> RGB:
        r, g, b = (min(255, round(c * k)) for c, k in zip(colour, LIGHT[self.time], strict=True))
        return r, g, b

    def polygon(self, points: list[tuple[float, float]], colour: RGB) -> None:
        self._draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=self.lit(colour))

    def rectangle(
        self, x0: float, y0: float, x1: float, y1: float, colour: RGB, *, glows: bool = False
    ) -> None:
        s = self.size
        self._draw.rectangle((x0 * s, y0 * s, x1 * s, y1 * s), fill=colour if glows else self.lit(colour))

    def dot(self, x: float, y: float, radius: float, colour: RGB) -> None:
        s = self.size
        self._draw.ellipse(
            ((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill=self.lit(colour)
        )

    def bar(self, x: float, y: float, width: float, colour: RGB) -> None:
        s = self.size
        box = (x * s, y * s, (x + width) * s, (y + 0.012) * s)
        self._draw.rounded_rectangle(box, 0.006 * s, fill=self.lit(colour))

    def gradient(self, y0: float, top: RGB, bottom: RGB) -> None:
        start = round(y0 * self.size)
        for y in range(start, self.size):
            t = (y - start) / max(1, self.size - start)
            r, g, b = (round(a + (z - a) * t) for a, z in zip(top, bottom, strict=True))
            self._draw.line((0, y, self.size, y), fill=self.lit((r, g, b)))

    def hills(self, y: float, height: float, waves: float, colour: RGB, rng: random.Random) -> None:
        phase = rng.random() * math.tau
        steps = 64
        ridge = [(i / steps, y + height * math.sin(i / steps * waves + phase)) for i in range(steps + 1)]
        self.polygon([(0, 1), *ridge, (1, 1)], colour)


def _sea(land: Land, rng: random.Random) -> None:
    land.gradient(HORIZON["sea"], (38, 128, 205), (16, 84, 160))
    _draw_waves(land, rng, HORIZON["sea"] + 0.04, 0.98, 9)


def _beach(land: Land, rng: random.Random) -> None:
    land.gradient(HORIZON["beach"], (38, 140, 210), (30, 110, 185))
    _draw_waves(land, rng, HORIZON["beach"] + 0.03, 0.7, 5)
    land.hills(0.735, 0.012, 5, (246, 240, 225), random.Random(1))
    land.hills(0.755, 0.012, 5, (240, 212, 150), random.Random(1))
    land.hills(0.89, 0.012, 4, (228, 196, 132), rng)


def _desert(land: Land, rng: random.Random) -> None:
    land.hills(0.66, 0.035, 5, (226, 160, 88), rng)
    land.hills(0.76, 0.03, 4, (238, 180, 104), rng)
    land.hills(0.89, 0.015, 3.5, (246, 198, 124), rng)


def _mountains(land: Land, rng: random.Random) -> None:
    base = 0.75
    peaks = ((0.14, 0.38, 0.34), (0.84, 0.42, 0.36), (0.48, 0.52, 0.4))
    for (x, height, width), colour in zip(
        peaks, ((118, 128, 156), (108, 118, 148), (94, 104, 136)), strict=True
    ):
        x += 0.08 * (rng.random() - 0.5)
        top = base - height
        land.polygon([(x - width, base), (x, top), (x + width, base)], colour)
        cap, edge = 0.3 * width, top + 0.3 * height
        snow = [
            (x, top),
            (x - cap, edge),
            (x - cap / 2, edge - 0.03),
            (x, edge + 0.04),
            (x + cap / 2, edge - 0.03),
            (x + cap, edge),
        ]
        land.polygon(snow, (246, 248, 252))
    land.hills(0.75, 0.015, 5, (104, 166, 84), rng)
    land.hills(0.88, 0.012, 4, (120, 184, 92), rng)


def _forest(land: Land, rng: random.Random) -> None:
    for row, (base, height, colour) in enumerate(((0.74, 0.36, (38, 104, 70)), (0.79, 0.27, (30, 86, 56)))):
        for i in range(9):
            x, tall = (i + 0.5 * row) / 8, height * (0.82 + 0.36 * rng.random())
            for tier in range(3):
                width, foot = 0.075 * (1 - 0.22 * tier), base - tall * 0.28 * tier
                land.polygon([(x - width, foot), (x, foot - tall * 0.48), (x + width, foot)], colour)
    land.hills(0.75, 0.01, 5, (66, 142, 70), rng)
    land.hills(0.88, 0.012, 4, (84, 164, 80), rng)


def _city(land: Land, rng: random.Random) -> None:
    for front, (colour, low, high) in enumerate(
        (((132, 146, 172), 0.36, 0.58), ((92, 104, 134), 0.24, 0.44))
    ):
        x = -0.03 * front
        while x < 1:
            width, height = rng.choice((0.11, 0.14)), low + (high - low) * rng.random()
            land.rectangle(x, 0.77 - height, x + width, 0.8, colour)
            if front:
                _draw_windows(land, rng, x, 0.77 - height, width)
            x += width + 0.008
    land.gradient(0.77, (120, 124, 134), (92, 96, 106))
    for i in range(6):
        land.rectangle(i / 6 + 0.03, 0.945, i / 6 + 0.11, 0.96, (240, 236, 210))


def _meadow(land: Land, rng: random.Random) -> None:
    land.hills(0.64, 0.03, 5, (96, 176, 92), rng)
    land.hills(0.75, 0.025, 4, (116, 194, 92), rng)
    land.hills(0.88, 0.015, 3.5, (138, 208, 98), rng)
    for _ in range(12):
        colour = rng.choice(((255, 240, 120), (255, 255, 255), (250, 140, 170)))
        land.dot(rng.random(), 0.78 + 0.2 * rng.random(), 0.01, colour)


def _snow(land: Land, rng: random.Random) -> None:
    land.hills(0.64, 0.03, 5, (200, 216, 236), rng)
    land.hills(0.75, 0.025, 4, (222, 233, 246), rng)
    land.hills(0.88, 0.015, 3.5, (242, 247, 253), rng)


def _hill(land: Land, rng: random.Random) -> None:
    """One large hill before smaller ones."""
    land.hills(0.72, 0.02, 6, (104, 170, 110), rng)
    shift = 0.12 * (rng.random() - 0.5)
    steps = 64
    ridge = [
        (i / steps, 0.9 - 0.38 * math.exp(-(((i / steps - 0.5 - shift) / 0.3) ** 2)))
        for i in range(steps + 1)
    ]
    land.polygon([(0, 1), *ridge, (1, 1)], (86, 168, 84))
    land.hills(0.89, 0.012, 4, (112, 190, 92), rng)


def _road(land: Land, rng: random.Random) -> None:
    """A road through fields, seen from its side."""
    land.hills(0.64, 0.02, 5, (150, 180, 96), rng)
    land.hills(0.72, 0.015, 4, (172, 196, 104), rng)
    land.gradient(0.8, (92, 94, 102), (74, 76, 84))
    land.rectangle(0, 0.8, 1, 0.815, (214, 212, 204))
    for i in range(4):
        land.rectangle(i / 4 + 0.04, 0.945, i / 4 + 0.17, 0.965, (250, 214, 90))


def _space(land: Land, rng: random.Random) -> None:
    """The grey ground of a moon, and a planet far away."""
    x = 0.2 if rng.random() < 0.5 else 0.8
    land.dot(x, 0.24, 0.13, (250, 160, 110))
    land.dot(x - 0.03, 0.21, 0.07, (255, 190, 140))
    land.hills(0.8, 0.015, 5, (150, 150, 166), rng)
    land.hills(0.88, 0.01, 4, (172, 172, 188), rng)
    for i in range(4):
        land.dot(0.14 + 0.24 * i + 0.06 * rng.random(), 0.9 + 0.07 * rng.random(), 0.025, (136, 136, 152))


DRAW_PLACE = {
    "sea": _sea, "beach": _beach, "desert": _desert, "mountains": _mountains,
    "forest": _forest, "city": _city, "meadow": _meadow, "snow": _snow,
    "hill": _hill, "road": _road, "space": _space,
}  # fmt: skip


def _draw_waves(land: Land, rng: random.Random, top: float, bottom: float, count: int) -> None:
    for i in range(count):
        y = top + (bottom - top) * i / count
        land.bar(rng.random() - 0.05, y, 0.08 + 0.1 * rng.random(), (130, 196, 240))


def _draw_windows(land: Land, rng: random.Random, x: float, top: float, width: float) -> None:
    rows = int((0.72 - top) / 0.055)
    for row in range(rows):
        for column in range(round(width / 0.035) - 1):
            left, up = x + 0.018 + 0.035 * column, top + 0.03 + 0.055 * row
            lamp = land.time != "day" and rng.random() < 0.75
            land.rectangle(
                left, up, left + 0.018, up + 0.026, (255, 222, 120) if lamp else (176, 206, 232), glows=lamp
            )
