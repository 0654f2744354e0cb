"""Masks for repainting: the PNG is checked and read.

A mask in memory is bool (height, width), true where to repaint.
"""

import io
from contextlib import suppress

import numpy as np
from jaxtyping import Bool
from PIL import Image

from services.errors import InvalidRequest
from services.images.codec import FORMATS, ImageLimits, opened, upright

Mask = Bool[np.ndarray, "Y X"]

# As OpenAI's API has it; the pixels are bounded by those of the picture.
MASK_LIMITS = ImageLimits(max_bytes=4 * 2**20)
# From here on a pixel is kept.
OPAQUE = 128

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of a PNG's header: the byte with the type of its pixels, and the types that have an alpha.
COLOUR_TYPE_AT, COLOUR_TYPES_WITH_ALPHA = 25, (4, 6)


def decode_mask(data: bytes, field: str, *, width: int, height: int) -> Mask:
    """Reads a PNG's alpha, or its brightness where it has none: below 128 is to be repainted.

    Raises ImageTooLarge beyond the limits, and InvalidRequest unless it is of that size and has something to repaint.
    """
    with opened(data, MASK_LIMITS, field, ["PNG"]) as image:
        # Before it is decoded: a mask of another size is no use however small it is. A turned one still may fit.
        if sorted(image.size) != sorted((width, height)):
            raise _wrong_size(field, width, height, image.size)
        turned = upright(image)
        if turned.size != (width, height):
            raise _wrong_size(field, width, height, turned.size)
        mask: Mask = _levels(turned) < OPAQUE
    if not mask.any():
        raise InvalidRequest(field, "must have a transparent (or black) part, which is repainted; got none")
    return mask


def mask_of_transparency(data: bytes) -> bytes | None:
    """The mask that a picture's own transparent pixels are, as a gray PNG of its size; None where it has none.

    Also None for what is no picture, or too large: the decoder reports it.
    """
    with suppress(InvalidRequest), opened(data, ImageLimits(), "image", FORMATS) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        alpha = upright(image).convert("RGBA").getchannel("A")
        is_kept = np.asarray(alpha) >= OPAQUE
        if not is_kept.all():
            file = io.BytesIO()
            Image.fromarray(is_kept).save(file, "PNG")
            return file.getvalue()
    return None


def has_alpha(data: bytes) -> bool:
    """Whether a file is a PNG with transparency; nothing is decoded."""
    if not data.startswith(PNG_SIGNATURE) or len(data) <= COLOUR_TYPE_AT:
        return False
    # Other kinds may name transparent colours, in a chunk before the pixels.
    header, _, _ = data.partition(b"IDAT")
    return data[COLOUR_TYPE_AT] in COLOUR_TYPES_WITH_ALPHA or b"tRNS" in header


def _levels(image: Image.Image) -> np.ndarray:
    if "A" in image.getbands() or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))[..., 3]
    # Of 16 bits; Pillow's own conversion to 8 cuts them off at 255.
    if image.mode.startswith("I"):
        return np.asarray(image) // 256
    return np.asarray(image.convert("L"))


def _wrong_size(field: str, width: int, height: int, size: tuple[int, int]) -> InvalidRequest:
    return InvalidRequest(
        field, f"must have the size of the picture, {width}x{height}, got {size[0]}x{size[1]}"
    )
