"""Writes text into a PNG file's own text chunks, without decoding the picture."""

import shutil
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Signature, then IHDR: 4 bytes of length, 4 of type, 13 of data, 4 of checksum. Text may follow it at once.
HEADER_BYTES = len(SIGNATURE) + 25
COPIED_BYTES = 1 << 20


def with_text(png: bytes, text: Mapping[str, str]) -> bytes:
    """The same picture with one international text chunk (iTXt) for each entry.

    Keywords are 1 to 79 characters of Latin-1 (PNG specification, 11.3.3.1). Raises ValueError when `png` is no PNG.
    """
    return head_with_text(png[:HEADER_BYTES], text) + png[HEADER_BYTES:]


def copy_with_text(png: BinaryIO, file: BinaryIO, text: Mapping[str, str]) -> None:
    """As `with_text`, from one file to another, of any size."""
    file.write(head_with_text(png.read(HEADER_BYTES), text))
    shutil.copyfileobj(png, file, COPIED_BYTES)


def head_with_text(head: bytes, text: Mapping[str, str]) -> bytes:
    """The first HEADER_BYTES of a file, and the text. Raises ValueError when it is no PNG."""
    if not head.startswith(SIGNATURE) or head[12:16] != b"IHDR" or len(head) < HEADER_BYTES:
        raise ValueError(f"expected a PNG file, got {len(head)} bytes that begin with {head[:8]!r}")
    return head + b"".join(text_chunk(keyword, value) for keyword, value in text.items())


def text_chunk(keyword: str, value: str) -> bytes:
    name = keyword.encode("latin-1")
    if not 1 <= len(name) <= 79:
        raise ValueError(f"a keyword has 1 to 79 characters, got {keyword!r}")
    # After the keyword: its end, not compressed, method 0, no language, no translated keyword.
    body = b"iTXt" + name + b"\0\0\0\0\0" + value.replace("\0", "").encode("utf-8", "replace")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
