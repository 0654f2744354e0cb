"""Fits an image to a size without distortion: crops, or pads with bars.

Sizes are in pixels.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from services.images.codec import Picture

# How the rest of a picture of another aspect is treated.
Fit = Literal["crop", "pad"]
PAD_COLOUR = "white"


def fit(image: Image.Image, width: int, height: int, how: Fit = "crop") -> Image.Image:
    """The picture at exactly that size, its aspect kept; resampled by Lanczos.

    "crop": scaled until it covers the size, and cut evenly on both sides. "pad": scaled until it fits into the size, and
    white bars on both sides. A picture of that size is returned as it is.
    """
    if image.size == (width, height):
        return image
    if how == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color=PAD_COLOUR)


def fit_picture(
    picture: Picture, width: int, height: int, how: Fit = "crop"
) -> UInt8[np.ndarray, "H_out W_out 3"]:
    """As `fit`, of an array."""
    return np.array(fit(Image.fromarray(picture), width, height, how))


def fit_mask(
    mask: Bool[np.ndarray, "Y X"], width: int, height: int, how: Fit = "crop"
) -> Bool[np.ndarray, "H W"]:
    """A mask brought to a size as its picture is; a pixel is true where any part of it is. Bars are false."""
    if mask.shape == (height, width):
        return mask
    # As numbers with a fraction: one pixel of a large mask would be rounded away in 8 bits.
    shares = Image.fromarray(mask.astype(np.float32))
    if how == "crop":
        shares = ImageOps.fit(shares, (width, height), Image.Resampling.BOX)
    else:
        shares = ImageOps.pad(shares, (width, height), Image.Resampling.BOX, color=0)
    return np.asarray(shares) > 0
