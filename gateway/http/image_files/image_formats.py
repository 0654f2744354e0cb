"""Encodes images as PNG, JPEG or WebP, beside the event loop."""

import asyncio
import io

import numpy as np
from PIL import Image

from services.images.codec import ImageLimits, decode_image, encode_png
from services.images.fit import fit

# Our own workers made them: the bound is for memory, not for trust.
OWN_PICTURES = ImageLimits(max_bytes=256 * 2**20, max_pixels=8192 * 8192)
# What Pillow, and so dalle-playground's back end, takes for a JPEG when nothing is said.
USUAL_JPEG_QUALITY = 75
MIME_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


async def convert(
    data: bytes, output_format: str, compression: int, size: tuple[int, int] | None = None
) -> bytes:
    """A picture of ours as that format; `compression` is 0 to 100, the best. PNG stays what it is.

    `size`: the width and height that it is brought to, cut where the aspect is another one; None: its own.
    """
    if output_format == "png" and size is None:
        return data
    return await asyncio.to_thread(_convert, data, output_format, compression, size)


async def read_prompt(data: bytes) -> str:
    """The prompt in the text chunks of a PNG of ours; "" for any other file."""
    return await asyncio.to_thread(_read_prompt, data)


def _read_prompt(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # Other programs keep other things under this name.
            is_ours = str(image.info.get("Software", "")).startswith("triptych ")
            return str(image.info.get("prompt", "")) if is_ours else ""
    # No PNG, or a damaged one: the decoder reports it.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return ""


def _convert(data: bytes, output_format: str, compression: int, size: tuple[int, int] | None) -> bytes:
    picture = Image.fromarray(decode_image(data, OWN_PICTURES, "picture"))
    if size is not None:
        picture = fit(picture, *size)
    if output_format == "png":
        return encode_png(np.asarray(picture))
    file = io.BytesIO()
    # Pillow takes 0 for "not said".
    picture.save(file, output_format.upper(), quality=max(1, compression))
    return file.getvalue()
