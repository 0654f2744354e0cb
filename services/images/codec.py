"""Pictures as files: what a caller sends is checked before it is decoded, what we send is PNG.

A picture in memory is uint8 (H, W, 3). This module knows no network.
"""

import io
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from services.errors import ImageTooLarge, InvalidRequest

Picture = UInt8[np.ndarray, "H W 3"]

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class ImageLimits:
    """What a caller's picture may be; the pixels are read from the file's header, before anything is decoded."""

    max_bytes: int = 16 * 2**20
    max_pixels: int = 2048 * 2048
    max_side_px: int = 8192


def decode_image(data: bytes, limits: ImageLimits, field: str) -> Picture:
    """Decodes PNG, JPEG or WebP to RGB, transparent parts on white, turned as its EXIF orientation says.

    Raises ImageTooLarge beyond the limits and InvalidRequest, both naming `field`, for anything that is no whole picture.
    """
    with opened(data, limits, field, FORMATS) as image:
        return _to_rgb(upright(image))


@contextmanager
def opened(data: bytes, limits: ImageLimits, field: str, formats: Collection[str]) -> Iterator[Image.Image]:
    """A file of one of Pillow's `formats`, not decoded yet; what decoding raises inside the block is an error of `field`.

    Raises ImageTooLarge beyond the limits and InvalidRequest for anything else that is no whole picture.
    """
    kinds = list(formats)
    expected = f"a {kinds[0]} file" if len(kinds) == 1 else "a PNG, JPEG or WebP file"
    if not data:
        raise InvalidRequest(field, f"must be {expected}, got no bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(field, f"must have at most {limits.max_bytes} bytes, got {len(data)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; ours is an error and comes first
            with Image.open(io.BytesIO(data), formats=kinds) as image:
                width, height = image.size
                if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
                    raise ImageTooLarge(
                        field,
                        f"must have at most {limits.max_pixels} pixels and {limits.max_side_px} a side, "
                        f"got {width}x{height}",
                    )
                yield image
    except Image.DecompressionBombError:
        raise ImageTooLarge(field, f"must have at most {limits.max_pixels} pixels, got far more") from None
    except UnidentifiedImageError:
        raise InvalidRequest(field, f"must be {expected}") from None
    # Pillow's decoders report a damaged file by any of these, depending on the format and the damage.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, MemoryError) as error:
        raise InvalidRequest(field, f"is damaged or cut short: {error}") from None


def upright(image: Image.Image) -> Image.Image:
    """Decoded, and turned as its EXIF orientation says."""
    # Orientation is applied by hand: ImageOps.exif_transpose decodes and re-encodes the whole EXIF block.
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(image.getexif().get(0x0112, 1))
    image.load()
    return image.transpose(turn) if turn is not None else image


def read_png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG whose parts are all there and undamaged; raises ValueError. Nothing is decoded."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG file")
    place, size = 8, (0, 0)
    while True:
        if place + 12 > len(data):
            raise ValueError("a PNG file that is cut short")
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        kind = data[place + 4 : place + 8]
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("a PNG file that is damaged or cut short")
        if kind == b"IHDR":
            size = (
                int.from_bytes(data[place + 8 : place + 12], "big"),
                int.from_bytes(data[place + 12 : place + 16], "big"),
            )
        elif kind == b"IEND":
            return size
        place = end + 4


def encode_png(image: Picture, *, text: Mapping[str, str] | None = None, compress_level: int = 3) -> bytes:
    """A PNG file, with `text` in its text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=info, compress_level=compress_level)
    return file.getvalue()


def encode_preview(image: Picture) -> bytes:
    """A PNG made fast rather than small: a preview is looked at once."""
    return encode_png(image, compress_level=1)


def _to_rgb(image: Image.Image) -> Picture:
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image.convert("RGB")).copy()
