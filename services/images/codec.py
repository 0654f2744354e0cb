"""Decodes uploaded images after checking their size, and encodes PNG.

Every file becomes 8 bits a channel in sRGB, rotated by its EXIF orientation. A picture in memory is uint8 (H, W, 3).
"""

import importlib
import io
import re
import warnings
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from services.errors import ImageTooLarge, InvalidRequest
from services.images.color_profiles import to_srgb

Picture = UInt8[np.ndarray, "H W 3"]
Alpha = UInt8[np.ndarray, "H W"]

FORMATS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
if features.check("avif"):
    FORMATS["AVIF"] = "image/avif"
with suppress(ImportError):
    # Photos of telephones; an extra of its own, since it comes with libheif and x265.
    importlib.import_module("pillow_heif").register_heif_opener()
    FORMATS["HEIF"] = "image/heic"
NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}

ROWS_AT_ONCE = 256
# How a HEIC file begins (ISO 14496-12: the box ftyp and its major brand).
HEIC_BEGINNING = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", re.DOTALL)
NO_HEIC = (
    "is a HEIC file, which this server cannot read; save it as JPEG, or have its operator install pillow-heif "
    "(the extra `heic`)"
)

# Of a caller's picture: what telephones and most cameras make.
MAX_PIXELS = 25 * 2**20
# With a mask of 4 MiB and the rest of a request it fits a message of 32 MiB.
MAX_BYTES = 27 * 2**20


@dataclass(frozen=True)
class ImageLimits:
    """What a caller's picture may be; the pixels are read from the file's header, before anything is decoded."""

    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS
    max_side_px: int = 16_384


@dataclass(frozen=True)
class DecodedImage:
    """A picture with what is lost in RGB: how transparent its pixels are (None: not at all), and whether it is gray."""

    rgb: Picture
    alpha: Alpha | None = None
    is_gray: bool = False

    def flatten(self) -> Picture:
        """The picture on white."""
        if self.alpha is None:
            return self.rgb
        rgba = Image.fromarray(np.dstack([self.rgb, self.alpha]))
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")).copy()


def decode_image(data: bytes, limits: ImageLimits, field: str) -> Picture:
    """Decodes a file of one of FORMATS to RGB, transparent parts on white.

    Raises ImageTooLarge beyond the limits and InvalidRequest, both naming `field`, for anything that is no whole picture.
    """
    return decode_with_alpha(data, limits, field).flatten()


def decode_with_alpha(data: bytes, limits: ImageLimits, field: str) -> DecodedImage:
    """As `decode_image`, with the transparency beside the colours."""
    with opened(data, limits, field, FORMATS) as image:
        plain = to_srgb(to_8_bits(upright(image)))
        is_gray = plain.mode in ("1", "L", "LA")
        if "A" not in plain.getbands():
            return DecodedImage(_pixels(plain, "RGB"), is_gray=is_gray)
        alpha = _pixels(plain.getchannel("A"), "L")
        # An alpha that hides nothing is none.
        is_opaque = alpha.min(initial=255) == 255
        return DecodedImage(_pixels(plain, "RGB"), None if is_opaque else alpha, is_gray)


def _pixels(image: Image.Image, mode: str) -> UInt8[np.ndarray, "*shape"]:
    """An array of the picture in that mode, made strip by strip: Pillow would make three copies of a photo."""
    width, height = image.size
    pixels = np.empty((height, width, 3) if mode == "RGB" else (height, width), np.uint8)
    for top in range(0, height, ROWS_AT_ONCE):
        rows = image.crop((0, top, width, min(height, top + ROWS_AT_ONCE)))
        pixels[top : top + ROWS_AT_ONCE] = np.asarray(rows.convert(mode))
    return pixels


def format_names(formats: Collection[str] = tuple(FORMATS)) -> str:
    """ "PNG, JPEG or WebP", for errors and help."""
    *others, last = [NAMES.get(name, name) for name in formats]
    return f"{', '.join(others)} or {last}" if others else last


@contextmanager
def opened(data: bytes, limits: ImageLimits, field: str, formats: Collection[str]) -> Iterator[Image.Image]:
    """A file of one of Pillow's `formats`, not decoded yet; what decoding raises inside the block is an error of `field`.

    Raises ImageTooLarge beyond the limits and InvalidRequest for anything else that is no whole picture.
    """
    expected = f"a {format_names(formats)} file"
    if not data:
        raise InvalidRequest(field, f"must be {expected}, got no bytes")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            field,
            f"must have at most {limits.max_bytes} bytes, got {len(data)}; save it as JPEG or WebP, or make it smaller",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning; ours is an error and comes first
            with Image.open(io.BytesIO(data), formats=list(formats)) as image:
                width, height = image.size
                if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
                    raise ImageTooLarge(
                        field,
                        f"must have at most {limits.max_pixels} pixels and {limits.max_side_px} a side, "
                        f"got {width}x{height}; make it smaller",
                    )
                yield image
    except Image.DecompressionBombError:
        raise ImageTooLarge(field, f"must have at most {limits.max_pixels} pixels, got far more") from None
    except UnidentifiedImageError:
        if "HEIF" not in FORMATS and HEIC_BEGINNING.match(data):
            raise InvalidRequest(field, NO_HEIC) from None
        raise InvalidRequest(field, f"must be {expected}") from None
    # Pillow's decoders report a damaged file by any of these, depending on the format and the damage.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        OverflowError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise InvalidRequest(field, f"is damaged or cut short: {error}") from None


def upright(image: Image.Image) -> Image.Image:
    """Decoded, and rotated by its EXIF orientation."""
    # Orientation is applied by hand: ImageOps.exif_transpose decodes and re-encodes the whole EXIF block.
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    # First: of some formats the decoder turns the picture, and takes the tag away.
    image.load()
    turn = turns.get(_orientation(image))
    return image.transpose(turn) if turn is not None else image


def _orientation(image: Image.Image) -> int:
    """EXIF's, from 1 to 8; 1, as it is, where there is none or the block is damaged."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        return int(image.getexif().get(0x0112, 1))
    return 1


def to_8_bits(image: Image.Image) -> Image.Image:
    """In one of Pillow's modes of 8 bits a channel; transparency that a palette or a chunk names becomes an alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_16_bits(image)
    if "transparency" in image.info:
        return image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" else "RGB")
    return image.convert("L") if image.mode == "1" else image


def _scale_16_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits: Pillow's own conversion cuts off at 255. White is 65535, so 257 levels become one."""
    levels = np.asarray(image)
    gray = Image.fromarray(
        ((levels.clip(0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    )
    gray.info = {key: value for key, value in image.info.items() if key != "transparency"}
    if isinstance(transparent := image.info.get("transparency"), int):
        gray.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return gray


def read_png_size(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height of a PNG whose parts are all there and undamaged; raises ValueError. Nothing is decoded."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError("no PNG file")
    place, size = 8, (0, 0)
    while True:
        if place + 12 > len(data):
            raise ValueError("a PNG file that is cut short")
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        kind = bytes(data[place + 4 : place + 8])
        with memoryview(data)[place + 4 : end] as checked:
            crc = zlib.crc32(checked)
        if crc != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("a PNG file that is damaged or cut short")
        if kind == b"IHDR":
            size = (
                int.from_bytes(data[place + 8 : place + 12], "big"),
                int.from_bytes(data[place + 12 : place + 16], "big"),
            )
        elif kind == b"IEND":
            return size
        place = end + 4


def encode_png(
    image: UInt8[np.ndarray, "*shape"], *, text: Mapping[str, str] | None = None, compress_level: int = 3
) -> bytes:
    """A PNG file of (H, W) gray or (H, W, C) with 2 (gray and alpha), 3 or 4 channels, with `text` in its text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", pnginfo=info, compress_level=compress_level)
    return file.getvalue()


def encode_preview(image: Picture) -> bytes:
    """A PNG made fast rather than small: a preview is looked at once."""
    return encode_png(image, compress_level=1)
