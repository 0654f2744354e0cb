"""Pictures of a gateway as files of other formats, each with how it was made. Imports Pillow when it is asked to."""

import importlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from triptych.png_text import copy_with_text, with_text

# By the ending of a file's name, what Pillow calls the format.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
QUALITY = 92
# Exif's tag for what a picture shows (Exif 2.32, 4.6.4).
IMAGE_DESCRIPTION = 0x010E
MAX_WEBP_SIDE_PX = 16_383
NO_TEXT: Mapping[str, str] = MappingProxyType({})


def format_of(path: str | Path) -> str:
    """The format that a file's name asks for; raises ValueError for an ending that is not known."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(
            f"{path}: expected a name that ends with one of {', '.join(FORMATS)}, got {suffix!r}"
        )
    return FORMATS[suffix]


def encode_as(png: bytes, file_format: str, text: Mapping[str, str] = NO_TEXT) -> bytes:
    """A PNG file as one of that format, `text` in its own text chunks or as JSON in Exif's description.

    JPEG has no transparency: it is put on white. Raises ValueError where the format cannot hold the picture, or this
    machine's Pillow cannot write it.
    """
    if file_format == "PNG":
        return with_text(png, text) if text else png
    file = io.BytesIO()
    write_as(io.BytesIO(png), file, file_format, text)
    return file.getvalue()


def write_as(png: BinaryIO, file: BinaryIO, file_format: str, text: Mapping[str, str]) -> None:
    """As `encode_as`, from one file to another. A PNG is copied, in little memory; for other formats it is decoded."""
    if file_format == "PNG":
        copy_with_text(png, file, text)
        return
    from PIL import Image, features

    with any_size(), Image.open(png) as opened:
        picture: Image.Image = opened
        if file_format == "WEBP" and max(picture.size) > MAX_WEBP_SIDE_PX:
            raise ValueError(
                f"WebP holds at most {MAX_WEBP_SIDE_PX} pixels a side, the picture has {picture.width}x{picture.height}: "
                "use PNG or JPEG"
            )
        if file_format == "JPEG" and picture.mode not in ("L", "RGB"):
            rgba = picture.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            picture = Image.alpha_composite(white, rgba).convert("RGB")
        if file_format == "HEIF":
            _register_heif()
        if file_format == "AVIF" and not features.check("avif"):
            raise ValueError("this machine's Pillow cannot write AVIF; use PNG, JPEG or WebP")
        exif = Image.Exif()
        if text:
            exif[IMAGE_DESCRIPTION] = json.dumps(dict(text), ensure_ascii=True)
        more: dict[str, Any] = {} if file_format == "TIFF" else {"quality": QUALITY}
        picture.save(file, file_format, exif=exif, **more)


def _register_heif() -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise ValueError("HEIC files need pillow-heif; run: pip install pillow-heif") from None


@contextmanager
def any_size() -> Iterator[None]:
    """Pillow's limit is for files of strangers; these were made for us, and may have hundreds of megapixels."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
