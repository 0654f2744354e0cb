"""Reads PyTorch checkpoints without running anything that is in them, and without PyTorch.

A checkpoint of the zip format is a pickle beside the numbers of its tensors. The unpickler here builds containers,
descriptions of tensors, and inert stand-ins for the classes of named packages; any other name in the pickle is an
error, found before anything is called. A pickled module (kl-f8.pt) and a TorchScript archive (ViT-L-14.pt) are then
trees of stand-ins whose tensors are collected. Numbers are read when they are asked for, and a small file cannot ask
for more memory than it is large.
"""

import collections
import io
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from services.errors import ModelError
from services.weights.formats.pickle_work import check_work
from services.weights.formats.safetensors_file import (
    DTYPES,
    MAX_TENSORS,
    LazyTensor,
    read_range,
    read_safetensors,
)

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
# Packages whose classes may occur in a published file; they become stand-ins and are never imported.
MODULE_PACKAGES = ("ldm", "torch.nn", "pytorch_lightning")
TORCHSCRIPT_PACKAGES = ("__torch__",)
# Deeper than any network; a tree that holds itself ends here.
MAX_DEPTH = 60
# The pickles of the published files have some hundred kilobytes and some dozen classes.
MAX_PICKLE_BYTES = 16 * 2**20
MAX_CLASSES = 1_000
MAX_NODES = 1_000_000
MAX_NAME = 1_000


def read_tensors(path: Path, *, packages: tuple[str, ...] = ()) -> dict[str, LazyTensor]:
    """The named tensors of a .safetensors file or a zip checkpoint.

    `packages` are those whose pickled classes are let through as stand-ins; () for a file of tensors alone.
    Raises ModelError for any other format, and for any other name in the pickle.
    """
    if not path.is_file():
        raise ModelError(f"{path} is no file: expected a checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if not is_zip(path):
        raise ModelError(
            f"{path} is no checkpoint that is read here: expected .safetensors or PyTorch's zip format. If it is of "
            "PyTorch's format before 1.6 (tar or bare pickle), load it where you trust it and save it again"
        )
    try:
        tensors = _read_zip(path, packages)
    except ModelError:
        raise
    # All that unpickling a damaged or hostile file has been seen to raise.
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
        AttributeError, RuntimeError, RecursionError, OverflowError, UnicodeDecodeError, NotImplementedError,
        MemoryError,
    ) as error:  # fmt: skip
        raise ModelError(f"{path} is damaged, or no checkpoint: {error!r}; fetch it again") from None
    claimed, there = sum(tensor.num_bytes for tensor in tensors.values()), path.stat().st_size
    # Some tensors share their numbers; not all of them do.
    if claimed > 2 * there:
        raise ModelError(
            f"{path}: its tensors would have {claimed} bytes, the file has {there}: it is damaged"
        )
    return tensors


def is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


class _Sealed:
    """An object that a pickle may hold and must not change."""

    def __setstate__(self, state: Any) -> None:
        raise ModelError(
            "the checkpoint sets the state of what it cannot set; refused, nothing of it was run"
        )


@dataclass(frozen=True)
class _Storage(_Sealed):
    """Numbers of one type in the zip file, not read yet."""

    path: Path
    member: zipfile.ZipInfo
    dtype: str
    size: int

    def __post_init__(self) -> None:
        expected, info = self.size * DTYPES[self.dtype].itemsize, self.member
        if (
            info.compress_type != zipfile.ZIP_STORED
            or not 0 <= expected <= info.file_size == info.compress_size
        ):
            raise ModelError(
                f"{self.path}: {info.filename}: expected {expected} bytes, not compressed, got {info.file_size} in "
                f"{info.compress_size}; the file is damaged"
            )

    def read(self, offset: int, count: int) -> NDArray[Any]:
        """The numbers from `offset` on, straight from their place in the file."""
        dtype = DTYPES[self.dtype]
        data = read_range(self.path, self._start() + offset * dtype.itemsize, dtype, count)
        if data.nbytes == self.member.file_size and zlib.crc32(data.view(np.uint8).data) != self.member.CRC:
            raise ModelError(f"{self.path}: {self.member.filename} is damaged; fetch it again")
        return data

    def _start(self) -> int:
        with self.path.open("rb") as file:
            file.seek(self.member.header_offset)
            header = file.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ModelError(f"{self.path}: {self.member.filename} is not where the file says: it is damaged")
        # The lengths of its name and of what else is said of it there stand at the header's end.
        return self.member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(
            header[28:30], "little"
        )  # fmt: skip


@dataclass(frozen=True)
class _StorageType(_Sealed):
    dtype: str


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

    def __init__(
        self, path: Path, archive: zipfile.ZipFile, prefix: str, payload: bytes, packages: tuple[str, ...]
    ) -> None:
        super().__init__(io.BytesIO(payload))
        self._path = path
        self._archive = archive
        self._prefix = prefix
        self._packages = packages
        self._known = _known_names(len(payload))
        self._stand_ins: dict[tuple[str, str], type[_StandIn]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return _StorageType(STORAGE_DTYPES[name])
        if known := self._known.get((module, name)):
            return known
        if any(f"{module}.".startswith(f"{package}.") for package in self._packages):
            return self._stand_in(module, name)
        raise ModelError(
            f"{self._path} asks for {module}.{name}, which no published checkpoint of this part needs: refused, and "
            "nothing of the file was run. Expected the published file"
        )

    def _stand_in(self, module: str, name: str) -> type[_StandIn]:
        found = self._stand_ins.get((module, name))
        if found is None:
            if len(self._stand_ins) == MAX_CLASSES:
                raise ModelError(f"{self._path} asks for more than {MAX_CLASSES} classes: it is damaged")
            found = type("StandIn", (_StandIn,), {"pickled_name": f"{module}.{name}"})
            self._stand_ins[module, name] = found
        return found

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, size = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ModelError(f"{self._path}: expected references to storages, got {kind!r}")
        member = self._archive.getinfo(f"{self._prefix}/data/{key}")
        return _Storage(self._path, member, storage_type.dtype, int(size))


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], steps: tuple[int, ...]
) -> _PickledTensor:
    shape, stride = [int(n) for n in size], [int(n) for n in steps]
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    # More numbers than the storage has would be the same ones again and again.
    if min((offset, *shape, *stride), default=0) < 0 or (
        0 not in shape and (last >= storage.size or prod(shape) > storage.size)
    ):
        raise ModelError(
            f"{storage.path}: a tensor of shape {shape} reaches beyond its {storage.size} numbers; it is damaged"
        )

    def load() -> NDArray[Any]:
        dtype = DTYPES[storage.dtype]
        if 0 in shape:
            return np.empty(shape, dtype)
        data = storage.read(offset, last + 1 - offset)
        return as_strided(data, shape, [step * dtype.itemsize for step in stride], writeable=False)

    return _PickledTensor(storage.dtype, tuple(shape), load)


def _known_names(num_items: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """What a pickle may call: nothing in here does more than to build a value from its arguments.

    Made anew for each file, so that a pickle which hangs something on them hangs it on its own. All calls together
    copy at most `num_items`, so that no short pickle makes long copies of copies.
    """
    left = num_items

    def bounded(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any) -> Any:
            nonlocal left
            left -= sum(len(argument) for argument in arguments if hasattr(argument, "__len__"))
            if left < 0:
                raise ModelError("the checkpoint copies its own contents over and over; it is damaged")
            return make(*arguments)

        return made

    def tensor(storage: _Storage, offset: int, shape: Any, stride: Any, *_more: Any) -> _PickledTensor:
        return _rebuild_tensor(storage, offset, shape, stride)

    def first(value: Any, *_more: Any) -> Any:
        return value

    return {
        ("collections", "OrderedDict"): bounded(collections.OrderedDict),
        ("builtins", "set"): bounded(set),
        ("__builtin__", "set"): bounded(set),
        ("torch", "Size"): bounded(tuple),
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
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ModelError(f"{path}: expected a zip file with one data.pkl, as PyTorch writes it")
        prefix = pickles[0].partition("/")[0]
        if f"{prefix}/byteorder" in names and _small_member(archive, f"{prefix}/byteorder") != b"little":
            raise ModelError(f"{path}: expected little-endian numbers; save it again on such a machine")
        # A TorchScript archive has its program beside the pickle; it is not looked at.
        if f"{prefix}/constants.pkl" in names:
            packages = (*packages, *TORCHSCRIPT_PACKAGES)
        payload = _small_member(archive, pickles[0])
        _check_places(payload)
        check_work(payload, path)
        content = _Unpickler(path, archive, prefix, payload, packages).load()
    tensors = _Collected()
    tensors.add(content, "", 0)
    if not tensors.found:
        raise ModelError(f"{path}: expected named tensors, found none")
    return tensors.found


def _small_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Not compressed, as PyTorch writes it: what is read is then not more than there is."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or max(info.file_size, info.compress_size) > MAX_PICKLE_BYTES:
        raise ModelError(
            f"{archive.filename}: {name}: expected at most {MAX_PICKLE_BYTES} bytes, not compressed, got "
            f"{info.file_size}: refused, and nothing of the file was run"
        )
    return archive.read(info)


def _check_places(payload: bytes) -> None:
    """Refuses numbers of memory places beyond the pickle's own length: the unpickler would make room up to there."""
    for opcode, argument, _ in pickletools.genops(payload):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(payload):
            raise ModelError(
                f"the checkpoint's pickle counts to {argument} in {len(payload)} bytes; it is damaged"
            )


class _Collected:
    """Names the tensors of a state dict, a pickled module or a TorchScript module, as `state_dict()` would."""

    def __init__(self) -> None:
        self.found: dict[str, LazyTensor] = {}
        self._num_nodes = 0

    def add(self, node: Any, prefix: str, depth: int) -> None:
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES or len(prefix) > MAX_NAME:
            raise ModelError("the checkpoint's modules lie in one another without end; it is damaged")
        if isinstance(node, LazyTensor):
            self.found[prefix.removesuffix(".")] = node
            if len(self.found) > MAX_TENSORS:
                raise ModelError(f"the checkpoint has more than {MAX_TENSORS} tensors; no published one has")
            return
        children = node.state if isinstance(node, _StandIn) else node
        if depth == 0 and isinstance(children, list | tuple):  # a pair of mean and deviation, say
            children = {str(index): child for index, child in enumerate(children)}
        if not isinstance(children, Mapping):
            return
        if depth == 0 and isinstance(children.get("state_dict"), Mapping):
            children = children["state_dict"]
        is_module = isinstance(node, _StandIn) and "_modules" in children
        for name, child in children.items():
            if is_module and name in ("_parameters", "_buffers", "_modules"):
                self.add(child, prefix, depth + 1)
            elif not is_module and isinstance(name, str):
                self.add(child, f"{prefix}{name}.", depth + 1)
