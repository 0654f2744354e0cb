"""Reads and writes safetensors files tensor by tensor, with little memory.

The format: 8 bytes of header length, a JSON header of names, types, shapes and offsets, then the numbers.
bfloat16, which numpy does not have, travels as its 16 bits.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}
FLOATING_POINT = frozenset({"F64", "F32", "F16", "BF16"})
# The largest published networks have about a thousand tensors.
MAX_TENSORS = 10_000
MAX_HEADER_BYTES = 16 * 2**20
# What is laid out anew at once when a tensor does not lie in memory as it will in the file.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read or made only when it is written; `load` gives numpy's type for `dtype`."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Memory stays near the largest single tensor."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.num_bytes
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the numbers begin at a multiple of 8
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, tensor in tensors.items():
            array = tensor.load()
            if array.shape != tensor.shape or array.dtype != DTYPES[tensor.dtype]:
                raise ValueError(
                    f"{name}: announced {tensor.dtype} of shape {tensor.shape}, got {array.dtype} of {array.shape}"
                )
            for block in _blocks(array):
                file.write(block.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def halve_file(path: Path) -> None:
    """Writes the file again with float16 in place of float32; raises ModelError where a number does not fit."""
    tensors = read_safetensors(path)
    halved = path.with_name(f".{path.name}.half")
    try:
        write_safetensors(
            halved, {name: _half(name, t) if t.dtype == "F32" else t for name, t in tensors.items()}
        )
        halved.replace(path)
    except BaseException:
        halved.unlink(missing_ok=True)
        raise


def _half(name: str, tensor: LazyTensor) -> LazyTensor:
    def load() -> NDArray[Any]:
        array = tensor.load()
        largest = float(np.abs(array).max(initial=0))
        if largest > np.finfo(np.float16).max:
            raise ModelError(
                f"{name} has a number of {largest:g}, which float16 cannot hold: leave out --half"
            )
        return array.astype(np.float16)

    return LazyTensor("F16", tensor.shape, load)


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array's rows in order, laid out one after another."""
    if array.flags.c_contiguous or array.ndim == 0:
        yield np.ascontiguousarray(array)
        return
    num_rows = max(1, BLOCK_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), num_rows):
        yield np.ascontiguousarray(array[start : start + num_rows])


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, none of them read yet; raises ModelError when it is no whole safetensors file."""
    try:
        return dict(_described(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}; fetch it again") from None


def read_metadata(path: Path) -> dict[str, str]:
    """What is said of the file in its header, beside its tensors; raises ModelError."""
    try:
        found = _header(path)[0].get("__metadata__", {})
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}; fetch it again") from None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin."""
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) < 8 or size > MAX_HEADER_BYTES or 8 + size > path.stat().st_size:
            raise ValueError(f"its header cannot have {size} bytes")
        try:
            return json.loads(file.read(size)), 8 + size
        except RecursionError:
            raise ValueError("its header is nested too deeply") from None


def _described(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    header, start = _header(path)
    room = path.stat().st_size - start
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"it names {len(header)} tensors, expected at most {MAX_TENSORS}")
    total = 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if not all(type(size) is int and size >= 0 for size in (*shape, begin, end)) or end > room:
            raise ValueError(f"{name} is not in the file")
        if end - begin != prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has {end - begin} bytes, expected those of {shape}")
        total += end - begin
        yield name, lazy_range(path, start + begin, entry["dtype"], shape)
    if total > room:
        raise ValueError("its tensors lie in one another")


def lazy_range(path: Path, start: int, dtype: str, shape: tuple[int, ...]) -> LazyTensor:
    """The tensor that lies in a file from byte `start` on."""
    return LazyTensor(
        dtype, shape, lambda: read_range(path, start, DTYPES[dtype], prod(shape)).reshape(shape)
    )


def read_range(path: Path, start: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """So many numbers of a file, read into memory of their own; raises ModelError when it has fewer."""
    data = np.empty(count, dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        view = data.view(np.uint8).data
        done = 0
        while done < len(view):
            # One read gives at most 2 GiB.
            num_bytes = file.readinto(view[done : done + 2**30])
            if not num_bytes:
                raise ModelError(f"{path} ends at byte {start + done}, expected {len(view) - done} more")
            done += num_bytes
    return data
