"""Brings a picture to a size without squeezing it: the middle is kept (crop), or bars fill the rest (pad).

Pictures are Pillow's or uint8 (H, W, C) arrays. Resampling is Lanczos. It knows no file and no network.
"""

from typing import Literal

from PIL import Image, ImageOps

# How the rest of a picture of another shape is treated.
Fit = Literal["crop", "pad"]
PAD_COLOUR = "white"


def fit(image: Image.Image, width: int, height: int, how: Fit = "crop") -> Image.Image:
    """The picture at exactly that size, its aspect kept.

    "crop": scaled until it covers the size, and cut evenly on both sides. "pad": scaled until it fits into the size, and
    white bars on both sides. A picture of that size is returned as it is.
    """
    if image.size == (width, height):
        return image
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    colour = PAD_COLOUR if image.mode in ("RGB", "RGBA", "L", "LA") else None
    return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color=colour)
