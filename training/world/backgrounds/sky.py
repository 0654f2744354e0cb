"""Draws the sky behind a place: its colours, stars, sun and moon, a rainbow, clouds, rain and snow.

All lengths are fractions of the picture's width.
"""

import random

import numpy as np
from PIL import Image, ImageDraw

from training.world.backgrounds.places import HORIZON, RGB

DISC_Y = {"day": 20 / 128, "sunset": 44 / 128, "night": 20 / 128}
CLOUDS = ((0.02, 0.03), (0.36, 0.09), (0.68, 0.02))

SKY: dict[str, tuple[RGB, RGB]] = {
    "day": ((64, 150, 235), (190, 228, 250)),
    "sunset": ((104, 70, 150), (255, 166, 100)),
    "night": ((10, 14, 50), (46, 54, 116)),
    "grey": ((120, 132, 148), (186, 194, 204)),
    "space": ((6, 6, 22), (30, 22, 58)),
}


def draw_sky(size: int, kind: str, place: str) -> Image.Image:
    top, bottom = (np.array(colour, np.float32) for colour in SKY["space" if place == "space" else kind])
    t = np.clip(np.linspace(0, 1 / HORIZON[place], size, dtype=np.float32), 0, 1)[:, None, None]
    pixels = (top * (1 - t) + bottom * t) * np.ones((size, size, 1), np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_stars(picture: Image.Image, rng: random.Random) -> None:
    draw, s = ImageDraw.Draw(picture), picture.width
    for _ in range(24):
        x, y, r = rng.random() * s, rng.random() * s * 0.48, s * rng.choice((0.005, 0.007, 0.009))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(235, 238, 255))


def draw_rainbow(picture: Image.Image) -> None:
    s = picture.width
    arch = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(arch)
    bands = ((235, 60, 60), (250, 150, 50), (250, 225, 70), (80, 190, 90), (70, 130, 235), (140, 80, 200))
    for i, colour in enumerate((*bands, None)):
        r = s * (0.47 - 0.022 * i)
        box = (s / 2 - r, s * 0.62 - r, s / 2 + r, s * 0.62 + r)
        draw.ellipse(box, fill=(*colour, 215) if colour else (0, 0, 0, 0))
    picture.paste(arch, (0, 0), arch)


def draw_disc(picture: Image.Image, sky: str, x: float, time: str) -> None:
    """The sun or moon, in the middle of the slot at `x`."""
    s = picture.width
    x, y = x * s, DISC_Y[time] * s
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


def draw_clouds(picture: Image.Image, time: str, *, dark: bool, keep_free: str | None) -> None:
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


def draw_falling(picture: Image.Image, weather: str) -> None:
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
