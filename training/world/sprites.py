"""Pictures of the objects, in any of their colours.

`fluent_sprites` reads the Fluent 3D emoji (MIT, Microsoft Corporation) from the npm package that it fetches into
a cache folder; `stand_in_sprites` draws plain shapes instead, for tests on a machine without npm.
"""

import functools
import io
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.world.vocabulary import COLOURS, OBJECTS

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
CACHE = Path("build/training/sprites")
# What the pictures' licence asks to be shipped with everything that reproduces them.
NOTICE = """\
The pictures that this model was trained on contain Fluent Emoji 3D by Microsoft Corporation:

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

# (object, colour or None for its natural one) -> RGBA, cropped to what is seen.
SpriteSource = Callable[[str, str | None], Image.Image]


def fluent_sprites(cache: Path = CACHE) -> SpriteSource:
    """The Fluent 3D emoji; runs `npm pack` once if the package is not in `cache`."""
    archive = next(iter(sorted(cache.glob("*.tgz"))), None) or _fetch(cache)
    wanted = {f"package/assets/{kind.sprite}.webp": name for name, kind in OBJECTS.items() if kind.sprite}
    pictures = {"lighthouse": draw_lighthouse()}
    with tarfile.open(archive) as package:
        for member in package:
            if member.name in wanted and (file := package.extractfile(member)) is not None:
                pictures[wanted[member.name]] = Image.open(io.BytesIO(file.read()), formats=["WEBP"]).convert(
                    "RGBA"
                )
    if missing := sorted(OBJECTS.keys() - pictures.keys()):
        raise FileNotFoundError(
            f"{archive} lacks the sprites of {missing[:5]}; delete it to fetch {PACKAGE} again"
        )

    @functools.cache
    def sprite(name: str, colour: str | None) -> Image.Image:
        picture = pictures[name] if colour is None else recolour(pictures[name], colour)
        return picture.crop(picture.getbbox())

    return sprite


def draw_lighthouse() -> Image.Image:
    """What no emoji shows: a tower in red and white stripes, with a lamp under a roof."""
    picture = Image.new("RGBA", (512, 512))
    draw = ImageDraw.Draw(picture)
    for i in range(5):
        y0, y1 = 150 + 66 * i, 150 + 66 * (i + 1)
        left0, left1 = (196 - (y - 150) * 0.16 for y in (y0, y1))
        band = [(left0, y0), (512 - left0, y0), (512 - left1, y1), (left1, y1)]
        draw.polygon(band, (222, 62, 60) if i % 2 == 0 else (246, 244, 240))
        shade = [(512 - left0 - 34, y0), (512 - left0, y0), (512 - left1, y1), (512 - left1 - 40, y1)]
        draw.polygon(shade, (178, 42, 52) if i % 2 == 0 else (208, 206, 214))
    draw.rounded_rectangle((176, 132, 336, 156), 8, (74, 78, 96))
    draw.rectangle((206, 72, 306, 132), (255, 222, 110))
    for x in (206, 252, 298):
        draw.rectangle((x, 72, x + 8, 132), (74, 78, 96))
    draw.polygon([(190, 74), (256, 14), (322, 74)], (214, 54, 54))
    draw.rounded_rectangle((120, 474, 392, 500), 10, (132, 136, 150))
    return picture.reduce(2)


def stand_in_sprites() -> SpriteSource:
    """Plain shapes that differ from object to object: no sprite package, no likeness."""

    @functools.cache
    def sprite(name: str, colour: str | None) -> Image.Image:
        number = zlib.crc32(name.encode())
        fill = COLOURS[colour] if colour else (number % 200, number // 200 % 200, number // 40000 % 200)
        picture = Image.new("RGBA", (256, 256))
        draw = ImageDraw.Draw(picture)
        draw.regular_polygon((128, 128, 120), 3 + number % 5, rotation=number % 90, fill=(*fill, 255))
        draw.regular_polygon(
            (128, 128, 50), 3 + number // 5 % 5, rotation=number % 77, fill=(30, 30, 40, 255)
        )
        return picture.crop(picture.getbbox())

    return sprite


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """Gives the sprite's dominant hue (or its greys, if it has none) another colour, keeping light and shade."""
    rgba = np.asarray(picture).astype(np.float32) / 255
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    solid = alpha > 0.5
    value, darkest = rgb.max(-1), rgb.min(-1)
    saturation = (value - darkest) / np.maximum(value, 1e-3)
    hue = np.asarray(picture.convert("RGB").convert("HSV"))[..., 0].astype(np.float32) * (360 / 255)
    weight = solid * saturation * value
    histogram, _ = np.histogram(hue, bins=24, range=(0, 360), weights=weight)
    smooth = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    distance = np.abs((hue - (smooth.argmax() * 15 + 7.5) + 180) % 360 - 180)
    if (
        weight.sum() / max(solid.sum(), 1) < 0.12
    ):  # a grey or white sprite has no hue: tint what is neither dark nor lit
        paint = np.clip((0.55 - np.abs(value - 0.75)) * 6, 0, 1)
    else:
        paint = np.clip((62 - distance) / 15, 0, 1) * np.clip((saturation - 0.12) / 0.12, 0, 1)
    luminance = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
    painted = paint * solid
    mean = (luminance * painted).sum() / max(painted.sum(), 1)
    shade = np.clip(luminance / max(mean, 0.05), 0.35, 1.7)[..., None]
    target = np.array(COLOURS[colour], np.float32) / 255
    shaded = np.where(shade <= 1, target * shade, target + (1 - target) * (shade - 1) * 0.75)
    mixed = rgb * (1 - paint[..., None]) + np.clip(shaded, 0, 1) * paint[..., None]
    return Image.fromarray((np.concatenate([mixed, alpha[..., None]], -1) * 255).round().astype(np.uint8))


def _fetch(cache: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"npm is not installed: training needs the sprites of {PACKAGE}; install it")
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=cache, check=True, capture_output=True)  # noqa: S603 - fixed arguments
    return next(iter(sorted(cache.glob("*.tgz"))))
