"""Reads PyTorch checkpoints without running anything that is in them.

A checkpoint of the zip format is a pickle beside the numbers of its tensors. The unpickler here builds containers,
descriptions of tensors, and inert stand-ins for the classes of named packages; any other name in the pickle is an
error, found before anything is called. A pickled module (kl-f8.pt) and a TorchScript archive (ViT-L-14.pt) are then
trees of stand-ins whose tensors are collected. Numbers are read when they are asked for.
"""

import collections
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.errors import ModelError
from services.refiner.weights_file import LazyTensor

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# Packages whose classes may occur in a published file; they become stand-ins and are never imported.
MODULE_PACKAGES = ("ldm", "torch.nn", "pytorch_lightning")
TORCHSCRIPT_PACKAGES = ("__torch__",)
# Deeper than any network; a tree that holds itself ends here.
MAX_DEPTH = 60


def read_tensors(path: Path, *, packages: tuple[str, ...] = ()) -> dict[str, LazyTensor]:
    """The named tensors of a .safetensors file or a zip checkpoint.

    `packages` are those whose pickled classes are let through as stand-ins; () for a file of tensors alone.
    Raises ModelError for any other format, and for any other name in the pickle.
    """
    if not path.is_file():
        raise ModelError(f"{path} is no file: expected a checkpoint")
    with path.open("rb") as file:
        start = file.read(8)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if start[:4] != b"PK\x03\x04":
        raise ModelError(
            f"{path} is no checkpoint that is read here: expected .safetensors or PyTorch's zip format. If it is of "
            "PyTorch's format before 1.6 (tar or bare pickle), load it where you trust it and save it again"
        )
    try:
        return _read_zip(path, packages)
    except ModelError:
        raise
    # All that unpickling a damaged or hostile file has been seen to raise.
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
        AttributeError, RuntimeError, RecursionError, OverflowError, UnicodeDecodeError, NotImplementedError,
        MemoryError,
    ) as error:  # fmt: skip
        raise ModelError(f"{path} is damaged, or no checkpoint: {error!r}; fetch it again") from None


class _Sealed:
    """An object that a pickle may hold and must not change."""

    def __setstate__(self, state: Any) -> None:
        raise ModelError(
            "the checkpoint sets the state of what it cannot set; refused, nothing of it was run"
        )


@dataclass(frozen=True)
class _Storage(_Sealed):
    """Numbers of one type in the zip file, not read yet."""

    archive: zipfile.ZipFile
    member: str
    dtype: torch.dtype
    size: int

    def read(self) -> Tensor:
        info = self.archive.getinfo(self.member)
        expected = self.size * self.dtype.itemsize
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < expected:
            raise ModelError(
                f"{self.archive.filename}: {self.member}: expected {expected} bytes, not compressed, got "
                f"{info.file_size}; the file is damaged"
            )
        data = bytearray(self.archive.read(info))
        return (
            torch.frombuffer(data, dtype=self.dtype, count=self.size)
            if self.size
            else torch.empty(0, dtype=self.dtype)
        )


@dataclass(frozen=True)
class _StorageType(_Sealed):
    dtype: torch.dtype


class _PickledTensor(_Sealed, LazyTensor):
    pass


class _StandIn(dict[Any, Any]):
    """Takes the place of an object of another package: keeps its state, does nothing."""

    def __init__(self, *_args: Any) -> None:
        super().__init__()
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, _value: Any) -> None:
        """What a pickled list subclass asks of its object."""

    def extend(self, _values: Any) -> None:
        """As `append`."""

    def __hash__(self) -> int:  # type: ignore[override] # a stand-in may be a key or lie in a set
        return id(self)


class _Unpickler(pickle.Unpickler):
    """Knows the names below and stand-ins for `packages`; every other name is refused."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str, packages: tuple[str, ...]) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}/data.pkl")))
        self._archive = archive
        self._prefix = prefix
        self._packages = packages
        self._known = _known_names()

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return _StorageType(STORAGE_DTYPES[name])
        if known := self._known.get((module, name)):
            return known
        if any(f"{module}.".startswith(f"{package}.") for package in self._packages):
            return type("StandIn", (_StandIn,), {"pickled_name": f"{module}.{name}"})
        raise ModelError(
            f"{self._archive.filename} asks for {module}.{name}, which no published checkpoint of this part needs: refused, and "
            "nothing of the file was run. Expected the published file"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, size = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ModelError(f"{self._archive.filename}: expected references to storages, got {kind!r}")
        return _Storage(self._archive, f"{self._prefix}/data/{key}", storage_type.dtype, int(size))


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], steps: tuple[int, ...]
) -> _PickledTensor:
    shape, stride = [int(n) for n in size], [int(n) for n in steps]
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if min((offset, *shape, *stride), default=0) < 0 or (0 not in shape and last >= storage.size):
        raise ModelError(
            f"{storage.archive.filename}: a tensor of shape {shape} reaches beyond its {storage.size} numbers; it is damaged"
        )
    return _PickledTensor(
        storage.dtype,
        tuple(shape),
        lambda: torch.as_strided(storage.read(), shape, stride, offset).contiguous(),
    )


def _known_names() -> dict[tuple[str, str], Callable[..., Any]]:
    """What a pickle may call: nothing in here does more than to build a value from its arguments.

    Made anew for each file, so that a pickle which hangs something on them hangs it on its own.
    """

    def tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_more: Any) -> _PickledTensor:
        return _rebuild_tensor(storage, offset, shape, stride)

    def first(value: Any, *_more: Any) -> Any:
        return value

    return {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): first,
        ("torch.jit._pickle", "build_intlist"): first,
        ("torch.jit._pickle", "build_doublelist"): first,
        ("torch.jit._pickle", "build_boollist"): first,
        ("torch.jit._pickle", "build_tensorlist"): first,
        ("torch.jit._pickle", "restore_type_tag"): first,
    }


def _read_zip(path: Path, packages: tuple[str, ...]) -> dict[str, LazyTensor]:
    # Left open: tensors are read from it later. It is closed with the last of them.
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError(f"{path}: expected a zip file with one data.pkl, as PyTorch writes it")
    prefix = pickles[0].partition("/")[0]
    if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder") != b"little":
        raise ModelError(f"{path}: expected little-endian numbers; save it again on such a machine")
    # A TorchScript archive has its program beside the pickle; it is not looked at.
    if f"{prefix}/constants.pkl" in names:
        packages = (*packages, *TORCHSCRIPT_PACKAGES)
    tensors: dict[str, LazyTensor] = {}
    _collect(_Unpickler(archive, prefix, packages).load(), "", tensors, 0)
    if not tensors:
        raise ModelError(f"{path}: expected named tensors, found none")
    return tensors


def _collect(node: Any, prefix: str, tensors: dict[str, LazyTensor], depth: int) -> None:
    """Names the tensors of a state dict, a pickled module or a TorchScript module, as `state_dict()` would."""
    if depth > MAX_DEPTH:
        raise ModelError("the checkpoint's modules lie in one another without end; it is damaged")
    if isinstance(node, LazyTensor):
        tensors[prefix.removesuffix(".")] = node
        return
    children = node.state if isinstance(node, _StandIn) else node
    if not isinstance(children, Mapping):
        return
    if depth == 0 and isinstance(children.get("state_dict"), Mapping):
        children = children["state_dict"]
    is_module = isinstance(node, _StandIn) and "_modules" in children
    for name, child in children.items():
        if is_module and name in ("_parameters", "_buffers", "_modules"):
            _collect(child, prefix, tensors, depth + 1)
        elif not is_module and isinstance(name, str):
            _collect(child, f"{prefix}{name}.", tensors, depth + 1)


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    try:
        file: Any = safe_open(path, "pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {
            name: LazyTensor(
                dtypes[piece.get_dtype()], tuple(piece.get_shape()), partial(file.get_tensor, name)
            )
            for name, piece in slices.items()
        }
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelError(f"{path} is no whole safetensors file: {error}; fetch it again") from None
