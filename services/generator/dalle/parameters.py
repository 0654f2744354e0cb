"""Tensors on disk: model.safetensors into the nested parameters of a network, and back.

Loading is strict: every name of the network once and no other, each in its shape. Writing takes one tensor at a time,
so that a model larger than memory can be converted.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from services.errors import ModelError
from services.weights.formats.safetensors_file import read_safetensors
from services.weights.model_folder import check_names
from triptych._files import replacing

FILE_NAME = "model.safetensors"
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16"}


class TensorSpec(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


def load_parameters(
    part_folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    as_stored: tuple[str, ...] = (),
    kernel_dtype: DTypeLike = np.float32,
) -> dict[str, Any]:
    """Reads a part's tensors as numpy arrays, nested by name; raises ModelError unless they are `shapes`.

    Kernels are in `kernel_dtype`, others in float32. Those whose name ends with one of `as_stored` keep the precision
    that they have in the file.
    Beside the arrays it takes the memory of one tensor, whatever the file's precision; the file is not mapped.
    """
    path = part_folder / FILE_NAME
    if not path.is_file():
        raise ModelError(f"{path} is missing: convert or pull the model again")
    tensors = read_safetensors(path)
    check_names(str(path), shapes, {name: tensor.shape for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_DTYPES.values():
            raise ModelError(
                f"{path}: {name}: expected float32 or float16, got {tensor.dtype}; convert or pull the model again"
            )

    def load(name: str) -> NDArray[Any]:
        if name.endswith(as_stored):
            return tensors[name].load()
        dtype = kernel_dtype if name.endswith(".kernel") else np.float32
        return tensors[name].load().astype(dtype, copy=False)

    return nest({name: load(name) for name in shapes})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"layers.0.q": x} becomes {"layers": [{"q": x}]}: a level whose names are all numbers is a list."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split(".")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[leaf] = value
    return _lists(tree)


def write_parameters(
    path: Path, specs: Mapping[str, TensorSpec], tensor: Callable[[str], NDArray[Any]]
) -> None:
    """Writes a safetensors file, asking `tensor` for one array after another; a failure leaves no file behind."""
    header, offset = {}, 0
    for name, (shape, dtype) in specs.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (shape, dtype) in specs.items():
            array = tensor(name)
            assert array.shape == shape, f"{name}: promised {shape}, got {array.shape}"  # noqa: S101 - our own bug
            file.write(np.ascontiguousarray(array, dtype).data)


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    branches = {name: _lists(branch) for name, branch in tree.items()}
    if all(name.isdigit() for name in branches):
        return [branches[name] for name in sorted(branches, key=int)]
    return branches
