"""The canvas of an enlarged image: in memory, or row by row in a file.

Gray stays gray, and an alpha is enlarged bicubically beside the colours. It knows tiles and no network.
"""

import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from services.engine.events import EncodedPicture
from services.images.codec import DecodedImage, Picture, encode_png
from services.images.png_stream import PngWriter
from services.upscaler.tiling import Span, Tile

# Of the result. Above it, memory grows with the width of a picture alone.
MAX_PIXELS_IN_MEMORY = 4096 * 4096
# Of what is shown of a large picture while it is made.
OVERVIEW_SIDE_PX = 1024

Enlarged = UInt8[np.ndarray, "H_out W_out 3"]
# What decoding needs: a picture, or what makes its file.
View = Picture | Callable[[], EncodedPicture]


@runtime_checkable  # for the type checks of the tests
class Canvas(Protocol):
    """Takes the tiles of one picture, row by row from the top."""

    def paste(self, tile: Tile, inner: Enlarged) -> None:
        """`inner` is the part of the tile that the image keeps, upscaled; padding is cut off."""
        ...

    def preview(self) -> Picture:
        """What there is so far, over a bicubic enlargement of the rest; of a large picture a smaller copy."""
        ...

    def result(self) -> View:
        """The whole picture; all tiles are there."""
        ...


def make_canvas(image: DecodedImage, upscale: int) -> Canvas:
    height, width = image.rgb.shape[:2]
    is_large = height * width * upscale**2 > MAX_PIXELS_IN_MEMORY
    return FileCanvas(image, upscale) if is_large else MemoryCanvas(image, upscale)


class MemoryCanvas:
    def __init__(self, image: DecodedImage, upscale: int) -> None:
        height, width = image.rgb.shape[:2]
        self._image = image
        self._upscale = upscale
        size = (width * upscale, height * upscale)
        self._pixels = np.array(Image.fromarray(image.rgb).resize(size, Image.Resampling.BICUBIC))

    def paste(self, tile: Tile, inner: Enlarged) -> None:
        place = self._pixels[_enlarged(tile.rows, self._upscale), _enlarged(tile.columns, self._upscale)]
        place[:] = inner[: place.shape[0], : place.shape[1]]

    def preview(self) -> Picture:
        return self._pixels.copy()

    def result(self) -> View:
        if self._image.alpha is None and not self._image.is_gray:
            return self._pixels
        return self._encode

    def _encode(self) -> EncodedPicture:
        height, width = self._pixels.shape[:2]
        channels = _with_own_channels(self._pixels, self._image, 0, height)
        # Pillow has no third axis for gray.
        pixels = channels[..., 0] if channels.shape[-1] == 1 else channels
        return EncodedPicture(encode_png(pixels), width, height)


@dataclass
class _Band:
    """The rows of one row of tiles."""

    start: int
    pixels: Enlarged


class FileCanvas:
    """Rows are written to a file as soon as all tiles of them are there."""

    def __init__(self, image: DecodedImage, upscale: int) -> None:
        height, width = image.rgb.shape[:2]
        self._image = image
        self._upscale = upscale
        self._width, self._height = width * upscale, height * upscale
        # Without a name: it is gone with the last who has it open.
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="triptych-")  # noqa: SIM115 - lives as long as the picture
        self._closing = weakref.finalize(self, self._file.close)
        channels = (1 if image.is_gray else 3) + (image.alpha is not None)
        self._writer = PngWriter(self._file, width=self._width, height=self._height, channels=channels)
        self._band: _Band | None = None
        share = OVERVIEW_SIDE_PX / max(width, height)
        self._share = min(1.0, share) / upscale
        size = max(1, round(self._width * self._share)), max(1, round(self._height * self._share))
        self._overview = np.array(Image.fromarray(image.rgb).resize(size, Image.Resampling.BICUBIC))

    def paste(self, tile: Tile, inner: Enlarged) -> None:
        rows, columns = _enlarged(tile.rows, self._upscale), _enlarged(tile.columns, self._upscale)
        if self._band is None or self._band.start != rows.start:
            self._write_band()
            num_rows = min(rows.stop, self._height) - rows.start
            self._band = _Band(rows.start, np.zeros((max(0, num_rows), self._width, 3), np.uint8))
        place = self._band.pixels[:, columns]
        place[:] = inner[: place.shape[0], : place.shape[1]]
        self._show(place, rows.start, columns.start)

    def preview(self) -> Picture:
        return self._overview.copy()

    def result(self) -> View:
        return self._finish

    def _finish(self) -> EncodedPicture:
        self._write_band()
        self._writer.close()
        encoded = EncodedPicture(b"", self._width, self._height, self._file)
        # From here on the file belongs to the one who reads it.
        self._closing.detach()
        weakref.finalize(encoded, self._file.close)
        return encoded

    def _write_band(self) -> None:
        band, self._band = self._band, None
        if band is not None and len(band.pixels):
            stop = band.start + len(band.pixels)
            self._writer.write_rows(_with_own_channels(band.pixels, self._image, band.start, stop))

    def _show(self, place: Enlarged, top: int, left: int) -> None:
        """Puts a small copy of what was pasted into the overview."""
        if not place.size:
            return
        bottom, right = top + place.shape[0], left + place.shape[1]
        y, x, y_stop, x_stop = (round(edge * self._share) for edge in (top, left, bottom, right))
        if y_stop > y and x_stop > x:
            small = Image.fromarray(place).resize((x_stop - x, y_stop - y), Image.Resampling.BOX)
            part = self._overview[y:y_stop, x:x_stop]
            part[:] = np.asarray(small)[: part.shape[0], : part.shape[1]]


def _enlarged(span: Span, upscale: int) -> slice:
    return slice(span.keep_start * upscale, span.keep_stop * upscale)


def _with_own_channels(
    pixels: UInt8[np.ndarray, "R W 3"], image: DecodedImage, start: int, stop: int
) -> UInt8[np.ndarray, "R W C"]:
    """Rows `start` to `stop` of the result in the channels that the picture came in."""
    colours = np.asarray(Image.fromarray(pixels).convert("L"))[..., None] if image.is_gray else pixels
    if image.alpha is None:
        return colours
    height, width = image.alpha.shape
    upscale = pixels.shape[1] / width
    # Pillow looks beyond the box for what a filter needs, so that bands join without a seam.
    alpha = Image.fromarray(image.alpha).resize(
        (pixels.shape[1], stop - start),
        Image.Resampling.BICUBIC,
        box=(0, start / upscale, width, min(height, stop / upscale)),
    )
    return np.dstack([colours, np.asarray(alpha)])
