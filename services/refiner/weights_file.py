"""Writing model.safetensors tensor by tensor, so that a network larger than memory can be written.

The format: 8 bytes of header length, a JSON header of names, types, shapes and offsets, then the numbers.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read or made only when it is written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Memory stays near the largest single tensor."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.num_bytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (offset, end),
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the numbers begin at a multiple of 8
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name, tensor in tensors.items():
            value = tensor.load().to(tensor.dtype).contiguous()
            if tuple(value.shape) != tensor.shape:
                raise ValueError(f"{name}: announced shape {tensor.shape}, got {tuple(value.shape)}")
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)
