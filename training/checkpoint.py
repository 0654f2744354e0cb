"""Where recipes keep what resuming needs, and how a torch twin's weights become the services' tensors.

A checkpoint is one file of tensors and plain values, read without running code. The twins name their modules as the
services name their tensors, so export only turns kernels around.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save as serialize
from torch import Tensor, nn

from services.weights.model_folder import write_atomically

FOLDER = Path("build/training")


def save(path: Path, **state: Any) -> None:
    """Writes beside `path` and renames: a recipe killed in the middle leaves the old checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, partial)
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True, map_location="cpu")


def load_if(path: Path, key: str) -> dict[str, Any] | None:
    """What `save` wrote with this `key`; None if nothing, or if it was made of something else."""
    state = load(path) if path.exists() else {}
    return state if state.get("key") == key else None


def flax_tensors(network: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The network's weights in the layout of the JAX services: HWIO and (in, out) kernels, `scale` for norms."""
    return {ours: turn(tensor).numpy() for ours, tensor, turn in _renamed(network)}


def load_flax_tensors(network: nn.Module, tensors: Mapping[str, NDArray[Any]]) -> None:
    """The inverse of `flax_tensors`, in place; every tensor of the network must be there, and no other."""
    expected = {ours for ours, _, _ in _renamed(network)}
    if expected != tensors.keys():
        different = sorted(expected ^ tensors.keys())
        raise ValueError(
            f"weights do not fit this network: {len(different)} names differ, first {different[:5]}"
        )
    with torch.no_grad():
        for ours, tensor, _ in _renamed(network):
            array = torch.from_numpy(np.asarray(tensors[ours], np.float32))
            turned = {4: lambda a: a.permute(3, 2, 0, 1), 2: lambda a: a.T}
            if ours.endswith(".kernel"):
                array = turned[array.ndim](array)
            if array.shape != tensor.shape:
                raise ValueError(f"{ours}: expected shape {tuple(tensor.shape)}, got {tuple(array.shape)}")
            tensor.copy_(array)


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: type = np.float16) -> None:
    write_atomically(path, serialize({name: np.ascontiguousarray(a, dtype) for name, a in tensors.items()}))


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    return load_file(path)


def _renamed(network: nn.Module) -> list[tuple[str, Tensor, Any]]:
    kernels = {
        nn.Conv2d: lambda t: t.permute(2, 3, 1, 0),
        nn.Linear: lambda t: t.T,
    }
    result = []
    for name, module in network.named_modules():
        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{name}.{leaf}" if name else leaf
            turn: Any = lambda t: t  # noqa: E731
            if leaf == "weight" and type(module) in kernels:
                full, turn = f"{name}.kernel", kernels[type(module)]
            elif leaf == "weight" and isinstance(module, nn.GroupNorm | nn.LayerNorm):
                full = f"{name}.scale"
            elif leaf == "weight" and isinstance(module, nn.Embedding):
                full = name
            result.append((full, tensor.detach(), turn))
    return result
