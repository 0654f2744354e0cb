"""Writes a PNG file row by row, for images that do not fit the memory."""

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

# By the number of channels: gray, gray and alpha, RGB, RGBA (PNG specification, 11.2.1).
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# Each row as its difference from the row above it (12.9): fast, and good for photos.
FILTER_UP = 2
IDAT_BYTES = 2**20


class PngWriter:
    """Writes rows from the top; `close` ends the file, which may then be read from its beginning."""

    def __init__(
        self, file: BinaryIO | io.BytesIO, *, width: int, height: int, channels: int, compress_level: int = 3
    ) -> None:
        self._file = file
        self._rows_left = height
        self._above = np.zeros((1, width * channels), np.uint8)
        self._compressor = zlib.compressobj(compress_level)
        self._pending = bytearray()
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0))

    def write_rows(self, rows: UInt8[np.ndarray, "R W C"]) -> None:
        """Appends rows; raises OSError where the file cannot be written."""
        flat = rows.reshape(len(rows), -1)
        filtered = np.empty((len(rows), flat.shape[1] + 1), np.uint8)
        filtered[:, 0] = FILTER_UP
        # Modulo 256, as the format has it.
        np.subtract(flat, np.concatenate([self._above, flat[:-1]]), out=filtered[:, 1:])
        self._above = flat[-1:].copy()
        self._rows_left -= len(rows)
        self._pending += self._compressor.compress(filtered.data)
        if len(self._pending) >= IDAT_BYTES:
            self._flush()

    def close(self) -> None:
        """Raises ValueError where rows are missing, or were too many."""
        if self._rows_left:
            raise ValueError(f"expected all rows of the picture, {self._rows_left} are missing")
        self._pending += self._compressor.flush()
        self._flush()
        self._chunk(b"IEND", b"")
        self._file.flush()

    def _flush(self) -> None:
        self._chunk(b"IDAT", bytes(self._pending))
        self._pending.clear()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
