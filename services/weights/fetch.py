"""Fetches a model to this machine: a whole one, or converted from published files.

Both work in a folder `staging` that may hold what an earlier attempt brought, and leave a whole model there.
Each stage's `convert` is imported by name.
"""

import logging
import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.errors import ModelError
from services.weights import model_folder
from services.weights.catalog import KnownModel, Source
from services.weights.conversion import conversion_module
from services.weights.download import (
    ConnectionLost,
    ProgressMeter,
    Remote,
    Report,
    download,
    full_disk_errors,
    sha256_of,
)
from services.weights.formats.safetensors_file import halve_file
from services.weights.model_folder import MANIFEST, Manifest
from services.weights.remotes import NotThere, artifact_remotes, open_remote
from triptych._installation import missing_library

log = logging.getLogger(__name__)

# Of any file but weights; a manifest has some kilobytes.
MAX_SMALL_BYTES = 16 * 2**20


def read_manifest_at(place: str) -> tuple[bytes, Manifest]:
    """The manifest of the model that lies at an address or in a folder; raises NotThere, or ModelError."""
    location = f"{place}/{MANIFEST}"
    with closing(open_remote(location)) as remote:
        if remote.num_bytes > MAX_SMALL_BYTES:
            raise ModelError(f"{location} has {remote.num_bytes} bytes: expected a model's manifest")
        try:
            raw = b"".join(remote.read(0, remote.num_bytes))
        except ConnectionLost as error:
            raise ModelError(f"{location}: {error}; run the command again") from None
    return raw, model_folder.parse_manifest(raw, location)


def pull_model(place: str, manifest: tuple[bytes, Manifest], staging: Path, show: Report) -> None:
    """Each file of a model at an address or in a folder, held against the manifest that was read there."""
    raw, parsed = manifest
    staging.mkdir(parents=True, exist_ok=True)
    (staging / MANIFEST).unlink(missing_ok=True)
    meter = ProgressMeter(sum(entry.num_bytes for entry in parsed.files.values()), show)
    for file, entry in parsed.files.items():
        path = staging / file
        if path.exists() and sha256_of(path) != entry.sha256:  # left by an attempt at another version
            path.unlink()
        with closing(open_remote(f"{place}/{file}")) as remote:
            download(remote, path, sha256=entry.sha256, report=meter.report)
        meter.next_file()
    model_folder.write_atomically(staging / MANIFEST, raw)


def pull_published(
    known: KnownModel, origin: str, staging: Path, show: Report, *, half: bool = False
) -> None:
    """Part by part, so that the disk never holds more than the model and the published files of one part.

    `half` keeps float16 in place of float32.
    """
    meter = ProgressMeter(known.num_bytes, show)
    convert = _converter(known)
    for source in known.sources:
        part = staging / source.part
        if (part / "model.safetensors").exists():
            log.info("%s is there from an earlier attempt", source.part)
            continue
        downloads = staging.with_name(f".{known.name}.published")
        published = _published(source, origin, downloads, meter)
        unfinished = staging / f".{source.part}"
        shutil.rmtree(unfinished, ignore_errors=True)
        log.info("converting %s", source.part)
        with full_disk_errors(staging, f"the {source.part} of {known.name} was being converted"):
            convert(published, unfinished, source.part)
            if half:
                halve_file(unfinished / "model.safetensors")
        unfinished.rename(part)
        shutil.rmtree(downloads, ignore_errors=True)
    model_folder.write_manifest(
        staging,
        name=known.name,
        stage=known.stage,
        origin=origin or ", ".join(source.location for source in known.sources),
        licence=known.licence,
        notices=known.notices,
        architecture=known.architecture,
    )


def _converter(known: KnownModel) -> Any:
    """The stage's `convert`. Raises ModelError when one of its libraries is not installed."""
    try:
        return conversion_module(known.stage, "convert", known.architecture).convert
    except ModuleNotFoundError as error:
        raise ModelError(
            missing_library(str(error.name), f"the conversion of the {known.stage}'s files")
            + ", or push the model to the S3 cache from a machine that has it"
        ) from None


def _published(source: Source, origin: str, folder: Path, meter: ProgressMeter) -> Path:
    """The file or folder to convert: downloaded, or where it lies when `origin` is a folder of this machine."""
    names = source.files or (source.location.rpartition("/")[2],)
    if origin and "://" not in origin:
        return _local(Path(origin), source, names)
    into = folder / source.part
    base = (origin or (source.location if source.files else source.location.rpartition("/")[0])).rstrip("/")
    if urlsplit(base).scheme == "wandb":
        for name, file in zip(names, artifact_remotes(base, names), strict=True):
            _download(file, into / name, meter)
    else:
        for name in names:
            remote = _remote(base, source.part if origin else "", name)
            _download(remote, into / name, meter, sha256="" if origin else source.sha256)
    for address in source.optional:
        folder_name, name = address.split("/")[-2:]
        try:
            remote = _remote(base, source.part, name, folder_name) if origin else open_remote(address)
        except NotThere:
            log.info("there is no %s; %s does without it", name, source.part)
        else:
            _download(remote, into / name, meter)
    return into if source.files else into / names[0]


def _download(remote: Remote, path: Path, meter: ProgressMeter, *, sha256: str = "") -> None:
    with closing(remote):
        download(remote, path, sha256=sha256, report=meter.report)
    meter.next_file()


def _remote(base: str, part: str, name: str, published_folder: str = "") -> Remote:
    """Files of parts may have the same names, so a place of the caller's may have them in folders, or as published."""
    for folder in filter(None, (part, published_folder)):
        with suppress(NotThere):
            return open_remote(f"{base}/{folder}/{name}")
    return open_remote(f"{base}/{name}")


def _local(root: Path, source: Source, names: tuple[str, ...]) -> Path:
    for candidate in (root / source.part, root):
        if all((candidate / name).is_file() for name in names):
            return candidate if source.files else candidate / names[0]
    raise ModelError(
        f"{root} holds no {MANIFEST} of a model, and no {', '.join(names)}: expected the published files there or in "
        f"{root / source.part}"
    )
