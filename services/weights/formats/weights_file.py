"""Finds the file of weights in a published folder, and checks its tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from services.errors import ModelError
from services.weights.formats.safetensors_file import FLOATING_POINT, LazyTensor

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")


def find_weights_file(source: Path, names: Sequence[str], folders: Sequence[Path] = ()) -> Path:
    """`source` itself if it is a file; else the first of `names` in it or in `folders`, else its only file of weights.

    Raises ModelError.
    """
    if not source.is_dir():
        return source
    for folder in (source, *folders):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    candidates = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if len(candidates) != 1:
        raise ModelError(
            f"{source}: expected one file of weights, got {', '.join(p.name for p in candidates) or 'none'}; name it"
        )
    return candidates[0]


def check_floating_point(tensors: Mapping[str, LazyTensor], where: Path) -> None:
    """Raises ModelError for a tensor of whole numbers."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATING_POINT:
            raise ModelError(f"{where}: {name}: expected floating-point numbers, got {tensor.dtype}")
