"""Reads flax_model.msgpack as data: a tree of names and arrays, nothing executed, numbers read when they are asked for.

Flax writes msgpack with extension types: 1 is an array (shape, dtype, bytes), 3 a numpy scalar in the same form; an array
above 1 GiB is a map {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": array, ...}}.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.weights.formats.safetensors_file import MAX_TENSORS, read_range

_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32
# Lists hold shapes, texts hold names.
_MAX_LIST = 32
_MAX_TEXT_BYTES = 1_000


class Range(NamedTuple):
    """Bytes of the file."""

    start: int
    num_bytes: int


@dataclass(frozen=True)
class FlaxArray:
    """An array that is still in the file, in one piece or several."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ranges: tuple[Range, ...]

    def read(self, layer: int | None = None) -> NDArray[Any]:
        """All of it, or one entry of its first axis; takes no more memory than what is returned."""
        shape = self.shape if layer is None else self.shape[1:]
        count = math.prod(shape)
        first = 0 if layer is None else layer * count
        if len(self.ranges) == 1:
            start = self.ranges[0].start + first * self.dtype.itemsize
            return read_range(self.path, start, self.dtype, count).reshape(shape)
        whole = np.empty(count, self.dtype)
        chunk_first = 0  # of the array's numbers, the first in this chunk
        for start, num_bytes in self.ranges:
            chunk_last = chunk_first + num_bytes // self.dtype.itemsize
            at, end = max(first, chunk_first), min(first + count, chunk_last)
            for piece in range(at, end, _PIECE):
                stop = min(piece + _PIECE, end)
                offset = start + (piece - chunk_first) * self.dtype.itemsize
                whole[piece - first : stop - first] = read_range(self.path, offset, self.dtype, stop - piece)
            chunk_first = chunk_last
        return whole.reshape(shape)


# Numbers that are read at once of an array in chunks.
_PIECE = 2**22


def read_flax_file(path: Path) -> dict[str, FlaxArray]:
    """Finds the file's arrays, by their names joined with "/"; raises ModelError if it is not one."""
    try:
        with path.open("rb") as file:
            return dict(_arrays(_Reader(path, file).whole(), ""))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: expected the published flax_model.msgpack") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: expected a Flax msgpack file of float arrays, got something else or a truncated one ({error}); "
            "download it again"
        ) from None


def _arrays(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, FlaxArray]]:
    for name, value in tree.items():
        if isinstance(value, FlaxArray):
            yield prefix + name, value
        elif isinstance(value, dict) and _CHUNKED in value:
            yield prefix + name, _join_chunks(value)
        elif isinstance(value, dict):
            yield from _arrays(value, f"{prefix}{name}/")
        else:
            raise ValueError(f"{prefix}{name} is a {type(value).__name__}, not an array")


def _join_chunks(value: Mapping[str, Any]) -> FlaxArray:
    try:
        shape = tuple(value["shape"][str(i)] for i in range(len(value["shape"])))
        chunks: list[FlaxArray] = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
        ranges = tuple(one for chunk in chunks for one in chunk.ranges)
        [dtype] = {chunk.dtype for chunk in chunks}
        path = chunks[0].path
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"a chunked array lacks {error}") from None
    num_bytes = sum(one.num_bytes for one in ranges)
    if (
        not all(type(size) is int and size > 0 for size in shape)
        or num_bytes != math.prod(shape) * dtype.itemsize
    ):
        raise ValueError(f"an array of shape {shape} and {dtype} comes in {num_bytes} bytes")
    return FlaxArray(path, shape, dtype, ranges)


class _Reader:
    """The part of msgpack that Flax writes; arrays stay in the file.

    What a length claims is held against what the file still has before anything is read or made.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.at = 0
        self.size = path.stat().st_size
        self.num_entries = 0

    def whole(self) -> dict[str, Any]:
        tree = self.value()
        if not isinstance(tree, dict) or self.at != self.size:
            raise ValueError("not one map from start to end")
        return tree

    def value(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
        tag = self.uint(1)
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self.map(tag & 0x0F, depth)
        if tag <= 0x9F:
            return self.list(tag & 0x0F, depth)
        if tag <= 0xBF:
            return self.text(tag & 0x1F)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if 0xC4 <= tag <= 0xC6:
            return self.skip(self.uint(1 << (tag - 0xC4)))
        if 0xC7 <= tag <= 0xC9:
            return self.extension(self.uint(1 << (tag - 0xC7)), depth)
        if tag in (0xCA, 0xCB):
            return struct.unpack(*((">f", self.take(4)) if tag == 0xCA else (">d", self.take(8))))[0]
        if 0xCC <= tag <= 0xCF:
            return self.uint(1 << (tag - 0xCC))
        if 0xD0 <= tag <= 0xD3:
            return int.from_bytes(self.take(1 << (tag - 0xD0)), "big", signed=True)
        if 0xD4 <= tag <= 0xD8:
            return self.extension(1 << (tag - 0xD4), depth)
        if 0xD9 <= tag <= 0xDB:
            return self.text(self.uint(1 << (tag - 0xD9)))
        if tag in (0xDC, 0xDD):
            return self.list(self.uint(2 if tag == 0xDC else 4), depth)
        if tag in (0xDE, 0xDF):
            return self.map(self.uint(2 if tag == 0xDE else 4), depth)
        raise ValueError(f"byte {tag:#x} at {self.at - 1} is not msgpack")

    def take(self, size: int) -> bytes:
        self.skip(size)
        self.file.seek(self.at - size)
        return self.file.read(size)

    def skip(self, size: int) -> Range:
        if self.at + size > self.size:
            raise ValueError(f"{self.at + size - self.size} bytes are missing at the end")
        self.at += size
        return Range(self.at - size, size)

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self, size: int) -> str:
        if size > _MAX_TEXT_BYTES:
            raise ValueError(f"a name of {size} bytes")
        return str(self.take(size), "utf-8")

    def list(self, size: int, depth: int) -> list[Any]:
        if size > _MAX_LIST:
            raise ValueError(f"a list of {size}, where a shape belongs")
        return [self.value(depth + 1) for _ in range(size)]

    def map(self, size: int, depth: int) -> dict[str, Any]:
        self.num_entries += size
        if self.num_entries > 10 * MAX_TENSORS:
            raise ValueError(f"more than {10 * MAX_TENSORS} names")
        entries: dict[str, Any] = {}
        for _ in range(size):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in entries:
                raise ValueError(f"{name!r} is not a name, or is there twice")
            entries[name] = self.value(depth + 1)
        return entries

    def extension(self, size: int, depth: int) -> FlaxArray:
        kind = self.uint(1)
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"extension type {kind} is neither an array nor a scalar")
        end = self.at + size
        shape, dtype, data = self.array_fields(depth)
        if self.at != end or math.prod(shape) * dtype.itemsize != data.num_bytes:
            raise ValueError(f"an array of shape {shape} and {dtype} holds {data.num_bytes} bytes")
        return FlaxArray(self.path, shape, dtype, (data,))

    def array_fields(self, depth: int) -> tuple[tuple[int, ...], np.dtype[Any], Range]:
        fields = self.value(depth + 1)
        match fields:
            case [list(shape), str(name), Range() as data] if name in _DTYPES:
                if all(type(size) is int and size > 0 for size in shape):
                    return tuple(shape), _DTYPES[name], data
        raise ValueError(f"an array is not of {', '.join(_DTYPES)}, or lacks its shape or bytes")
