"""Reads flax_model.msgpack as data: a tree of names and arrays, mapped from disk, nothing executed.

Flax writes msgpack with extension types: 1 is an array (shape, dtype, bytes), 3 a numpy scalar in the same form; an array
above 1 GiB is a map {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": array, ...}}.
Knows no network.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError

_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 32


def read_flax_file(path: Path) -> dict[str, NDArray[Any]]:
    """Maps the file and returns its arrays by their names joined with "/"; raises ModelError if it is not one."""
    try:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return dict(_arrays(_Reader(view).whole(), ""))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: expected the published flax_model.msgpack") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: expected a Flax msgpack file of float arrays, got something else or a truncated one ({error}); "
            "download it again"
        ) from None


def _arrays(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            yield prefix + name, value
        elif isinstance(value, dict) and _CHUNKED in value:
            yield prefix + name, _join_chunks(value)
        elif isinstance(value, dict):
            yield from _arrays(value, f"{prefix}{name}/")
        else:
            raise ValueError(f"{prefix}{name} is a {type(value).__name__}, not an array")


def _join_chunks(value: Mapping[str, Any]) -> NDArray[Any]:
    try:
        shape = [value["shape"][str(i)] for i in range(len(value["shape"]))]
        chunks = [value["chunks"][str(i)] for i in range(len(value["chunks"]))]
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a chunked array lacks {error}") from None


class _Reader:
    """The part of msgpack that Flax writes, over a mapped file; arrays are views into it."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.at = 0

    def whole(self) -> dict[str, Any]:
        tree = self.value()
        if not isinstance(tree, dict) or self.at != len(self.view):
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
            return self.take(self.uint(1 << (tag - 0xC4)))
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

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self.view):
            raise ValueError(f"{self.at + size - len(self.view)} bytes are missing at the end")
        self.at += size
        return self.view[self.at - size : self.at]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self, size: int) -> str:
        return str(self.take(size), "utf-8")

    def list(self, size: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(size)]

    def map(self, size: int, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(size):
            name = self.value(depth + 1)
            if not isinstance(name, str) or name in entries:
                raise ValueError(f"{name!r} is not a name, or is there twice")
            entries[name] = self.value(depth + 1)
        return entries

    def extension(self, size: int, depth: int) -> NDArray[Any]:
        kind = self.uint(1)
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"extension type {kind} is neither an array nor a scalar")
        end = self.at + size
        shape, dtype, data = self.array_fields(depth)
        if self.at != end or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape} and {dtype} holds {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape)

    def array_fields(self, depth: int) -> tuple[tuple[int, ...], np.dtype[Any], memoryview]:
        fields = self.value(depth + 1)
        match fields:
            case [list(shape), str(name), memoryview() as data] if name in _DTYPES:
                if all(type(size) is int and size >= 0 for size in shape):
                    return tuple(shape), _DTYPES[name], data
        raise ValueError(f"an array is not of {', '.join(_DTYPES)}, or lacks its shape or bytes")
