"""Model folders: manifest, parts, and lookup by name.

A model is MODEL/manifest.json and MODEL/<part>/{config.json, model.safetensors, tokenizer files}.
The manifest names every file with its sha256, so a truncated or swapped file is found before it is loaded.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.errors import ModelError
from services.families import FAMILY_OF_PART, find_family
from services.weights.names import check_file_name, is_model_name
from triptych._files import read_file, replacing
from triptych.stages import WORKER_NAMES

MANIFEST = "manifest.json"
# The family that ships with the project lies beside each stage's code.
BUILT_IN_FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class GoldenDifference:
    """How far one array of a loaded network is from its golden vector."""

    name: str
    max_abs_diff: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.max_abs_diff <= self.tolerance


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """The manifest of a model folder; `files` maps a path inside the folder to its digest."""

    name: str
    stage: str
    files: Mapping[str, FileEntry]
    origin: str = ""
    licence: str = ""
    notices: str = ""
    # Words that the model knows, by kind, and prompts that show them: for people, not for the network.
    vocabulary: Mapping[str, list[str]] = field(default_factory=dict)
    example_prompts: tuple[str, ...] = ()
    # Of a family in services/families.py; "": the stage's default.
    architecture: str = ""

    @property
    def digest(self) -> str:
        """One sha256 over all the files: two models are the same if it is the same."""
        listing = json.dumps({path: entry.sha256 for path, entry in sorted(self.files.items())})
        return hashlib.sha256(listing.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads MODEL/manifest.json; raises ModelError for an invalid one."""
    path = folder / MANIFEST
    try:
        return parse_manifest(read_file(path), str(path))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no {MANIFEST}: expected a model folder; make one with `triptych weights convert`"
        ) from None


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Raises ModelError for an invalid manifest, also for names of files outside of the model's folder."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not JSON: {error}") from None
    try:
        files = {
            name: FileEntry(str(entry["sha256"]), int(entry["num_bytes"]))
            for name, entry in raw.pop("files").items()
        }
        raw["example_prompts"] = tuple(raw.get("example_prompts", ()))
        manifest = Manifest(files=files, **raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is not a model's manifest: {error!r}") from None
    if not isinstance(raw["name"], str) or raw["stage"] not in WORKER_NAMES:
        raise ModelError(
            f"{where} is not a model's manifest: expected a name, and a stage of {', '.join(WORKER_NAMES)}"
        )
    for name in files:
        check_file_name(name, where)
    return manifest


def write_manifest(folder: Path, **fields: Any) -> Manifest:
    """Hashes every file of every part in `folder` and writes the manifest; `fields` are the Manifest's others."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(_sha256(path), path.stat().st_size)
        for path in _part_files(folder)
    }
    manifest = Manifest(files=files, **fields)
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, ensure_ascii=False).encode())
    return manifest


def check_files(folder: Path, manifest: Manifest, *, parts: Iterable[str] | None = None) -> None:
    """Compares sizes and sha256 of the files with the manifest; raises ModelError naming the first that differs."""
    wanted = set(parts) if parts is not None else None
    for name, entry in manifest.files.items():
        if wanted is not None and name.split("/")[0] not in wanted:
            continue
        path = folder / name
        if ".." in Path(name).parts or not path.is_file():
            raise ModelError(f"{path} is missing: the manifest names it; convert or pull the model again")
        if path.stat().st_size != entry.num_bytes:
            raise ModelError(
                f"{path}: expected {entry.num_bytes} bytes, got {path.stat().st_size}; convert or pull the model again"
            )
        if (found := _sha256(path)) != entry.sha256:
            raise ModelError(
                f"{path}: expected sha256 {entry.sha256}, got {found}; the file changed after the manifest was "
                "written: convert or pull the model again"
            )


def open_model(name_or_folder: str, stage: str) -> tuple[Path, Manifest]:
    """Finds a stage's model by name or path, and checks that it is whole.

    Raises ModelError when there is none, when it is another stage's, when a part is missing or a file differs.
    """
    folder = find_model(name_or_folder, stage)
    manifest = read_manifest(folder)
    if manifest.stage != stage:
        raise ModelError(f"{folder} is a model of the {manifest.stage}; expected one of the {stage}")
    needed = find_family(stage, manifest.architecture, str(folder)).parts
    for part in needed:
        if f"{part}/model.safetensors" not in manifest.files:
            raise ModelError(
                f"{folder} has no part '{part}': a {stage} needs {', '.join(needed)}; "
                f"add it with `triptych weights convert SOURCE {folder} --part {part}`"
            )
    check_files(folder, manifest)
    return folder, manifest


def find_model(name_or_folder: str, stage: str) -> Path:
    """A path that exists is itself; else a name among the built-in models or below TRIPTYCH_MODELS."""
    if (folder := Path(name_or_folder)).is_dir():
        return folder
    looked = [BUILT_IN_FOLDER / stage / "models" / name_or_folder] if is_model_name(name_or_folder) else []
    if (root := os.environ.get("TRIPTYCH_MODELS")) and is_model_name(name_or_folder):
        looked.append(Path(root) / stage / name_or_folder)
    for folder in looked:
        if folder.is_dir():
            return folder
    built_in = sorted(path.name for path in (BUILT_IN_FOLDER / stage / "models").glob("*") if path.is_dir())
    raise ModelError(
        f"no {stage} model '{name_or_folder}': expected a folder, or a built-in name ({', '.join(built_in) or 'none'})"
        + (", or a folder below TRIPTYCH_MODELS" if root else "")
    )


def read_config(part_folder: Path) -> dict[str, Any]:
    """Reads a part's config.json; raises ModelError."""
    path = part_folder / "config.json"
    try:
        config = json.loads(read_file(path))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: expected a part of a model folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def check_names(
    where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Holds names and shapes of tensors against what a network needs.

    Raises ModelError with the first five missing and left-over names, or the first wrong shape.
    """
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys())
    if missing or left_over:
        raise ModelError(
            f"{where}: {len(missing)} tensors missing (first: {', '.join(missing[:5]) or 'none'}), "
            f"{len(left_over)} left over (first: {', '.join(left_over[:5]) or 'none'}); "
            "the file does not fit this network and configuration"
        )
    for name, shape in expected.items():
        if tuple(found[name]) != tuple(shape):
            raise ModelError(f"{where}: {name}: expected shape {tuple(shape)}, got {tuple(found[name])}")


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces a file, or makes it and its folder; readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, mode=mode) as file:
        file.write(data)


def _part_files(folder: Path) -> list[Path]:
    parts = [folder / part for part in FAMILY_OF_PART if (folder / part).is_dir()]
    return sorted(path for part in parts for path in part.iterdir() if not path.name.startswith("."))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
