"""Draws scenes: procedural backgrounds, discs, weather, and sprites on them, at any resolution.

Everything stands on a grid of one eighth of 64 (8 px at 128), so that the same object gives a tokenizer of that
stride the same tokens in every slot. Weather is drawn behind objects.
"""

import functools
import math
import random

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.world.scenes import Scene, SceneObject
from training.world.sprites import SpriteSource
from training.world.vocabulary import OBJECTS

RGB = tuple[int, int, int]
# All lengths are fractions of the picture's width.
SLOT_X = {
    "left": 24 / 128, "center": 64 / 128, "right": 104 / 128,
    "first": 16 / 128, "second": 48 / 128, "third": 80 / 128, "fourth": 112 / 128,
    "above": 64 / 128, "on": 64 / 128, "front": 64 / 128,
}  # fmt: skip
SIZE = {"small": 34 / 128, "medium": 50 / 128, "big": 72 / 128}
GROUND_Y = 118 / 128  # where objects stand
AIR_Y = 56 / 128  # around which flying things are centred
ABOVE_Y = 32 / 128  # and those that are above another
GRID = 8 / 128
ON_OVERLAP = 0.25  # of its height is hidden by what is on it: a rider sits in the saddle, not on the ears
DISC_Y = {"day": 20 / 128, "sunset": 44 / 128, "night": 20 / 128}
CLOUDS = ((0.02, 0.03), (0.36, 0.09), (0.68, 0.02))

SKY: dict[str, tuple[RGB, RGB]] = {
    "day": ((64, 150, 235), (190, 228, 250)),
    "sunset": ((104, 70, 150), (255, 166, 100)),
    "night": ((10, 14, 50), (46, 54, 116)),
    "grey": ((120, 132, 148), (186, 194, 204)),
    "space": ((6, 6, 22), (30, 22, 58)),
}
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.86, 0.8), "night": (0.6, 0.62, 0.86)}
# Objects keep their own colour at every hour, as in a picture book: a red house at night is still red.
OBJECT_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 1.0, 1.0), "night": (1.0, 1.0, 1.0)}
HORIZON = {
    "sea": 0.62, "beach": 0.52, "desert": 0.66, "mountains": 0.7,
    "forest": 0.72, "city": 0.74, "meadow": 0.64, "snow": 0.66, "hill": 0.7, "road": 0.62, "space": 0.8,
}  # fmt: skip


class Painter:
    """Draws scenes of one size; keeps backgrounds and scaled sprites, for a picture takes milliseconds."""

    def __init__(self, sprites: SpriteSource, size: int = 128) -> None:
        self.size = size
        self._sprites = sprites
        self._background = functools.lru_cache(maxsize=1024)(self._draw_background)
        self._scaled = functools.lru_cache(maxsize=8192)(self._scale_sprite)

    def paint(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
        picture = self._background(
            scene.place, scene.time, scene.weather, scene.variant, scene.sky, scene.sky_slot
        ).copy()
        for scene_object in scene.objects:
            self._paint_object(picture, scene_object, scene)
        return np.asarray(picture)

    def background(self, scene: Scene) -> UInt8[np.ndarray, "H W 3"]:
        """The scene without its objects."""
        return np.asarray(
            self._background(scene.place, scene.time, scene.weather, scene.variant, scene.sky, scene.sky_slot)
        )

    def object_layer(
        self, scene_object: SceneObject, time: str, below: SceneObject | None = None
    ) -> UInt8[np.ndarray, "H W 4"]:
        """One object alone on a transparent ground, without its shadow; `below`: what it is on, if it is on another."""
        layer = Image.new("RGBA", (self.size, self.size))
        sprite = self._scaled(scene_object.name, scene_object.colour, scene_object.size, time)
        layer.paste(sprite, self._corner(scene_object, sprite, below))
        return np.asarray(layer)

    def object_mask(self, scene: Scene) -> Bool[np.ndarray, "H W"]:
        """Where the scene's objects are."""
        mask: NDArray[np.bool_] = np.zeros((self.size, self.size), bool)
        for scene_object in scene.objects:
            mask |= self.object_layer(scene_object, "day", scene.objects[0])[..., 3] > 100
        return mask

    def _paint_object(self, picture: Image.Image, scene_object: SceneObject, scene: Scene) -> None:
        sprite = self._scaled(scene_object.name, scene_object.colour, scene_object.size, scene.time)
        corner = self._corner(scene_object, sprite, scene.objects[0])
        if OBJECTS[scene_object.name].where == "ground" and scene_object.slot not in ("above", "on"):
            x, y = SLOT_X[scene_object.slot] * self.size, GROUND_Y * self.size
            rx, ry = sprite.width * 0.44, SIZE[scene_object.size] * self.size * 0.06
            ImageDraw.Draw(picture, "RGBA").ellipse((x - rx, y - ry, x + rx, y + ry), fill=(20, 25, 40, 70))
        picture.paste(sprite, corner, sprite)

    def _corner(
        self, scene_object: SceneObject, sprite: Image.Image, below: SceneObject | None
    ) -> tuple[int, int]:
        left = round(SLOT_X[scene_object.slot] * self.size - sprite.width / 2)
        if scene_object.slot == "above":
            return left, round(ABOVE_Y * self.size - sprite.height / 2)
        if scene_object.slot == "on" and below is not None:
            height = self._scaled(below.name, below.colour, below.size, "day").height / self.size
            # On the grid, as everything: the same tokens on whatever it is.
            steps = round(height * (1 - ON_OVERLAP) / GRID)
            return left, round((GROUND_Y - steps * GRID) * self.size - sprite.height)
        if OBJECTS[scene_object.name].where == "air":
            return left, round(AIR_Y * self.size - sprite.height / 2)
        return left, round(GROUND_Y * self.size - sprite.height)

    def _scale_sprite(self, name: str, colour: str | None, size: str, time: str) -> Image.Image:
        sprite = self._sprites(name, colour)
        factor = SIZE[size] * self.size / max(sprite.size)
        width, height = (max(1, round(side * factor)) for side in sprite.size)
        # Resized with premultiplied alpha, or the invisible pixels' colour bleeds into the edge.
        scaled = sprite.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
        lit = np.asarray(scaled).astype(np.float32) * np.array((*OBJECT_LIGHT[time], 1), np.float32)
        return Image.fromarray(lit.round().astype(np.uint8))

    def _draw_background(
        self, place: str, time: str, weather: str, variant: int, sky: str | None, sky_slot: str
    ) -> Image.Image:
        """Draws at twice the size and halves it, for smooth edges."""
        size = 2 * self.size
        rng = random.Random(f"{place} {variant}")
        picture = _sky(
            size, "grey" if time == "day" and weather in ("clouds", "rain", "snowfall") else time, place
        )
        if time == "night":
            _draw_stars(picture, random.Random(f"stars {variant}"))
        if weather == "rainbow":
            _draw_rainbow(picture)
        if sky == "sun" and time == "sunset":  # a setting sun stands behind mountains and houses
            _draw_disc(picture, sky, sky_slot, time)
        _PLACE_DRAWERS[place](_Land(picture, time), rng)
        if sky and not (sky == "sun" and time == "sunset"):
            _draw_disc(picture, sky, sky_slot, time)
        if weather in ("clouds", "rain", "snowfall"):
            _draw_clouds(picture, time, dark=weather == "rain", keep_free=sky_slot if sky else None)
        if weather in ("rain", "snowfall"):
            _draw_falling(picture, weather)
        return picture.reduce(2)


class _Land:
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


def _sea(land: _Land, rng: random.Random) -> None:
    land.gradient(HORIZON["sea"], (38, 128, 205), (16, 84, 160))
    _draw_waves(land, rng, HORIZON["sea"] + 0.04, 0.98, 9)


def _beach(land: _Land, rng: random.Random) -> None:
    land.gradient(HORIZON["beach"], (38, 140, 210), (30, 110, 185))
    _draw_waves(land, rng, HORIZON["beach"] + 0.03, 0.7, 5)
    land.hills(0.735, 0.012, 5, (246, 240, 225), random.Random(1))
    land.hills(0.755, 0.012, 5, (240, 212, 150), random.Random(1))
    land.hills(0.89, 0.012, 4, (228, 196, 132), rng)


def _desert(land: _Land, rng: random.Random) -> None:
    land.hills(0.66, 0.035, 5, (226, 160, 88), rng)
    land.hills(0.76, 0.03, 4, (238, 180, 104), rng)
    land.hills(0.89, 0.015, 3.5, (246, 198, 124), rng)


def _mountains(land: _Land, rng: random.Random) -> None:
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


def _forest(land: _Land, rng: random.Random) -> None:
    for row, (base, height, colour) in enumerate(((0.74, 0.36, (38, 104, 70)), (0.79, 0.27, (30, 86, 56)))):
        for i in range(9):
            x, tall = (i + 0.5 * row) / 8, height * (0.82 + 0.36 * rng.random())
            for tier in range(3):
                width, foot = 0.075 * (1 - 0.22 * tier), base - tall * 0.28 * tier
                land.polygon([(x - width, foot), (x, foot - tall * 0.48), (x + width, foot)], colour)
    land.hills(0.75, 0.01, 5, (66, 142, 70), rng)
    land.hills(0.88, 0.012, 4, (84, 164, 80), rng)


def _city(land: _Land, rng: random.Random) -> None:
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


def _meadow(land: _Land, rng: random.Random) -> None:
    land.hills(0.64, 0.03, 5, (96, 176, 92), rng)
    land.hills(0.75, 0.025, 4, (116, 194, 92), rng)
    land.hills(0.88, 0.015, 3.5, (138, 208, 98), rng)
    for _ in range(12):
        colour = rng.choice(((255, 240, 120), (255, 255, 255), (250, 140, 170)))
        land.dot(rng.random(), 0.78 + 0.2 * rng.random(), 0.01, colour)


def _snow(land: _Land, rng: random.Random) -> None:
    land.hills(0.64, 0.03, 5, (200, 216, 236), rng)
    land.hills(0.75, 0.025, 4, (222, 233, 246), rng)
    land.hills(0.88, 0.015, 3.5, (242, 247, 253), rng)


def _hill(land: _Land, rng: random.Random) -> None:
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


def _road(land: _Land, rng: random.Random) -> None:
    """A road through fields, seen from its side."""
    land.hills(0.64, 0.02, 5, (150, 180, 96), rng)
    land.hills(0.72, 0.015, 4, (172, 196, 104), rng)
    land.gradient(0.8, (92, 94, 102), (74, 76, 84))
    land.rectangle(0, 0.8, 1, 0.815, (214, 212, 204))
    for i in range(4):
        land.rectangle(i / 4 + 0.04, 0.945, i / 4 + 0.17, 0.965, (250, 214, 90))


def _space(land: _Land, rng: random.Random) -> None:
    """The grey ground of a moon, and a planet far away."""
    x = 0.2 if rng.random() < 0.5 else 0.8
    land.dot(x, 0.24, 0.13, (250, 160, 110))
    land.dot(x - 0.03, 0.21, 0.07, (255, 190, 140))
    land.hills(0.8, 0.015, 5, (150, 150, 166), rng)
    land.hills(0.88, 0.01, 4, (172, 172, 188), rng)
    for i in range(4):
        land.dot(0.14 + 0.24 * i + 0.06 * rng.random(), 0.9 + 0.07 * rng.random(), 0.025, (136, 136, 152))


_PLACE_DRAWERS = {
    "sea": _sea, "beach": _beach, "desert": _desert, "mountains": _mountains,
    "forest": _forest, "city": _city, "meadow": _meadow, "snow": _snow,
    "hill": _hill, "road": _road, "space": _space,
}  # fmt: skip


def _draw_waves(land: _Land, rng: random.Random, top: float, bottom: float, count: int) -> None:
    for i in range(count):
        y = top + (bottom - top) * i / count
        land.bar(rng.random() - 0.05, y, 0.08 + 0.1 * rng.random(), (130, 196, 240))


def _draw_windows(land: _Land, rng: random.Random, x: float, top: float, width: float) -> None:
    rows = int((0.72 - top) / 0.055)
    for row in range(rows):
        for column in range(round(width / 0.035) - 1):
            left, up = x + 0.018 + 0.035 * column, top + 0.03 + 0.055 * row
            lamp = land.time != "day" and rng.random() < 0.75
            land.rectangle(
                left, up, left + 0.018, up + 0.026, (255, 222, 120) if lamp else (176, 206, 232), glows=lamp
            )


def _sky(size: int, kind: str, place: str) -> Image.Image:
    top, bottom = (np.array(colour, np.float32) for colour in SKY["space" if place == "space" else kind])
    t = np.clip(np.linspace(0, 1 / HORIZON[place], size, dtype=np.float32), 0, 1)[:, None, None]
    pixels = (top * (1 - t) + bottom * t) * np.ones((size, size, 1), np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_stars(picture: Image.Image, rng: random.Random) -> None:
    draw, s = ImageDraw.Draw(picture), picture.width
    for _ in range(24):
        x, y, r = rng.random() * s, rng.random() * s * 0.48, s * rng.choice((0.005, 0.007, 0.009))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(235, 238, 255))


def _draw_rainbow(picture: Image.Image) -> None:
    s = picture.width
    arch = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(arch)
    bands = ((235, 60, 60), (250, 150, 50), (250, 225, 70), (80, 190, 90), (70, 130, 235), (140, 80, 200))
    for i, colour in enumerate((*bands, None)):
        r = s * (0.47 - 0.022 * i)
        box = (s / 2 - r, s * 0.62 - r, s / 2 + r, s * 0.62 + r)
        draw.ellipse(box, fill=(*colour, 215) if colour else (0, 0, 0, 0))
    picture.paste(arch, (0, 0), arch)


def _draw_disc(picture: Image.Image, sky: str, slot: str, time: str) -> None:
    s = picture.width
    x, y = SLOT_X[slot] * s, DISC_Y[time] * s
    glow = {"sun": (255, 214, 70), "moon": (200, 210, 255), "crescent": (200, 210, 255)}[sky]
    face = {"sun": (255, 226, 96), "moon": (250, 246, 220), "crescent": (252, 238, 180)}[sky]
    if sky == "sun" and time == "sunset":
        glow, face = (255, 120, 60), (255, 140, 66)
    draw = ImageDraw.Draw(picture, "RGBA")

    def circle(dx: float, dy: float, r: float, fill: tuple[int, ...], on: ImageDraw.ImageDraw = draw) -> None:
        on.ellipse((x + (dx - r) * s, y + (dy - r) * s, x + (dx + r) * s, y + (dy + r) * s), fill=fill)

    radius = 0.11
    if sky != "crescent":
        for i in range(8, 0, -1):
            circle(0, 0, radius + 0.012 * i, (*glow, 16))
        circle(0, 0, radius, face)
        if sky == "moon":
            for dx, dy, r in ((-0.04, -0.03, 0.024), (0.04, 0.02, 0.032), (-0.02, 0.05, 0.02)):
                circle(dx, dy, r, (222, 216, 190))
        return
    mask = Image.new("L", picture.size)
    cut = ImageDraw.Draw(mask)
    circle(0, 0, radius, (255,), cut)
    circle(0.06, -0.03, radius * 0.95, (0,), cut)
    picture.paste(Image.new("RGB", picture.size, face), (0, 0), mask)


def _draw_clouds(picture: Image.Image, time: str, *, dark: bool, keep_free: str | None) -> None:
    """Three clouds, none before the disc in the sky."""
    s = picture.width
    colour = {"day": (255, 255, 255), "sunset": (255, 208, 194), "night": (96, 104, 154)}[time]
    if dark:
        colour = (round(colour[0] * 0.74), round(colour[1] * 0.74), round(colour[2] * 0.74))
    w, h = 0.34 * s, 0.2 * s
    taken = None if keep_free is None else {"left": 0, "right": 2}[keep_free]
    for i, (left, top) in enumerate(CLOUDS):
        if i == taken:
            continue
        cloud = Image.new("L", (round(w), round(h)))
        draw = ImageDraw.Draw(cloud)
        for x, y, r in ((0.2, 0.68, 0.17), (0.4, 0.5, 0.24), (0.62, 0.55, 0.21), (0.8, 0.7, 0.15)):
            draw.ellipse(
                (w * (x - r * 0.9), h * y - w * r * 0.75, w * (x + r * 0.9), h * y + w * r * 0.75), fill=240
            )
        draw.rectangle((0, h * 0.86, w, h), fill=0)
        picture.paste(Image.new("RGB", cloud.size, colour), (round(left * s), round(top * s)), cloud)


def _draw_falling(picture: Image.Image, weather: str) -> None:
    """Rain or snow in a pattern that repeats every half width: few different tokens.

    Drops and flakes are thick enough to outlast the tokenizer, which keeps nothing thinner than 2 of 128 pixels.
    """
    draw, s = ImageDraw.Draw(picture, "RGBA"), picture.width
    rng = random.Random("drops")
    for _ in range(10):
        x0, y0 = rng.random() / 2, rng.random() / 2
        for x, y in ((x0, y0), (x0 + 0.5, y0), (x0, y0 + 0.5), (x0 + 0.5, y0 + 0.5)):
            if weather == "rain":
                line = (x * s, y * s, (x - 0.03) * s, (y + 0.09) * s)
                draw.line(line, fill=(195, 218, 246, 230), width=max(1, round(s * 0.018)))
            else:
                r = 0.02
                draw.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), fill=(255, 255, 255, 240))
