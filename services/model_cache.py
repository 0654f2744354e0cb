"""Models that were fetched: found in the caches of this machine, taken from S3 or from where they were published.

The order of look-up: a path, the built-in models, TRIPTYCH_MODELS (all three: model_folder.py), then here the user's
cache (TRIPTYCH_CACHE, else below ~/.cache), the machine's (TRIPTYCH_MACHINE_CACHE, shared by its containers), the S3
cache (TRIPTYCH_S3_CACHE=s3://BUCKET/PREFIX), and the origin. A model in a cache is whole: it gets its name last.
"""

import importlib
import logging
import os
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services import model_folder
from services.catalog import KNOWN, KnownModel, Source, known_model
from services.download import Meter, Remote, Report, download, full_disk_explained, locked, sha256_of
from services.errors import ModelError
from services.model_folder import MANIFEST, FileEntry, Manifest
from services.remotes import NotThere, S3Remote, open_remote, s3_client, s3_errors, split_s3

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Found:
    """A model folder, and where it was taken from."""

    folder: Path
    place: str
    seconds: float = 0.0


def user_cache() -> Path:
    root = os.environ.get("TRIPTYCH_CACHE")
    return (
        Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
    )


def machine_cache() -> Path | None:
    root = os.environ.get("TRIPTYCH_MACHINE_CACHE")
    return Path(root) / "triptych" if root else None


def s3_cache() -> str | None:
    location = os.environ.get("TRIPTYCH_S3_CACHE")
    return location.rstrip("/") if location else None


def find_cached(name: str, stage: str) -> Found | None:
    """A model that was fetched before."""
    for place, root in (("the user's cache", user_cache()), ("the machine's cache", machine_cache())):
        if root is not None and (root / "models" / stage / name / MANIFEST).is_file():
            return Found(root / "models" / stage / name, place)
    return None


def open_model(name_or_folder: str, stage: str) -> tuple[Path, Manifest]:
    """Finds a stage's model wherever it may be, fetches it if it must, checks it, and says where it came from.

    Raises ModelError.
    """
    started = time.monotonic()
    try:
        found = Found(model_folder.find_model(name_or_folder, stage), "its folder")
    except ModelError:
        cached = find_cached(name_or_folder, stage)
        if cached is None and (stage, name_or_folder) not in KNOWN and not s3_cache():
            raise
        found = cached or fetch(name_or_folder, stage, show=_logged(name_or_folder))
    opened = model_folder.open_model(str(found.folder), stage)
    log.info(
        "model %s of the %s: from %s in %.1f s, %s",
        name_or_folder, stage, found.place, time.monotonic() - started, found.folder,
    )  # fmt: skip
    return opened


def _logged(name: str) -> Report:
    """A line in the log every ten seconds."""
    told = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > LOG_EVERY_S:
            told = time.monotonic()
            log.info("fetching %s: %d of %d MB", name, done // 10**6, total // 10**6)

    return show


def fetch(name: str, stage: str, *, origin: str = "", show: Report = lambda done, total: None) -> Found:
    """Brings a model into the cache, from S3 or from its origin, and tells where it came from and how long it took.

    `origin` names another place than the published one: a folder or address with the files that were published.
    Raises ModelError. What has arrived is kept; the next call goes on from it.
    """
    if not origin and (found := find_cached(name, stage)):
        return found
    folder = (machine_cache() or user_cache()) / "models" / stage / name
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not origin and (found := find_cached(name, stage)):  # another process was quicker
            return found
        staging = folder.with_name(f".{name}.fetching")
        place = origin
        if not origin and (bucket := s3_cache()):
            place = f"{bucket}/{stage}/{name}"
            try:
                _pull_from_s3(place, staging, show)
            except NotThere:
                place = ""
        if origin or not place:
            known = known_model(name, stage)
            place = origin or "where it was published"
            _pull_from_origin(known, origin, staging, show)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    found = Found(folder, place, time.monotonic() - started)
    log.info("%s %s: from %s in %.0f s", stage, name, found.place, found.seconds)
    return found


def push(folder: Path, bucket: str, *, show: Report = lambda done, total: None) -> str:
    """Copies a model folder to BUCKET/PREFIX/STAGE/NAME and returns that place; what is there already is left.

    The manifest goes last: a reader sees a whole model or none. Raises ModelError.
    """
    manifest = model_folder.read_manifest(folder)
    model_folder.check_files(folder, manifest)
    place = f"{bucket.rstrip('/')}/{manifest.stage}/{manifest.name}"
    name, prefix = split_s3(place)
    client = s3_client()
    meter = Meter(sum(entry.num_bytes for entry in manifest.files.values()), show)
    for file, entry in manifest.files.items():
        location = f"{place}/{file}"
        if not _is_there(location, client, entry):
            sent = 0

            def count(num_bytes: int, total: int = entry.num_bytes) -> None:
                nonlocal sent
                sent += num_bytes
                meter.report(sent, total)

            try:
                with s3_errors(location):
                    client.upload_file(
                        str(folder / file),
                        name,
                        f"{prefix}/{file}",
                        ExtraArgs={"Metadata": {"sha256": entry.sha256}},
                        Callback=count,
                    )
            except ModelError:
                # The last answer may have been lost on its way, and the upload be whole.
                if not _is_there(location, client, entry):
                    raise
        meter.report(entry.num_bytes, entry.num_bytes)
        meter.next_file()
    with s3_errors(place):
        client.put_object(Bucket=name, Key=f"{prefix}/{MANIFEST}", Body=(folder / MANIFEST).read_bytes())
    return place


def _is_there(location: str, client: Any, entry: FileEntry) -> bool:
    try:
        remote = S3Remote(location, client)
    except NotThere:
        return False
    return (remote.sha256, remote.num_bytes) == (entry.sha256, entry.num_bytes)


def _pull_from_s3(place: str, staging: Path, show: Report) -> None:
    """A model folder as `push` leaves it; each file is held against the manifest."""
    client = s3_client()
    bucket, prefix = split_s3(place)
    with s3_errors(place):
        raw = client.get_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST}")["Body"].read()
    staging.mkdir(parents=True, exist_ok=True)
    (staging / MANIFEST).unlink(missing_ok=True)
    manifest = model_folder.parse_manifest(raw, f"{place}/{MANIFEST}")
    meter = Meter(sum(entry.num_bytes for entry in manifest.files.values()), show)
    for file, entry in manifest.files.items():
        path = staging / file
        if path.exists() and sha256_of(path) != entry.sha256:  # left by an attempt at another version
            path.unlink()
        download(S3Remote(f"{place}/{file}", client), path, sha256=entry.sha256, report=meter.report)
        meter.next_file()
    model_folder.write_atomically(staging / MANIFEST, raw)


def _pull_from_origin(known: KnownModel, origin: str, staging: Path, show: Report) -> None:
    """Part by part, so that the disk never holds more than the model and the published files of one part."""
    meter = Meter(known.num_bytes, show)
    convert = _converter(known.stage)
    for source in known.sources:
        part = staging / source.part
        if (part / "model.safetensors").exists():
            log.info("%s is there from an earlier attempt", source.part)
            continue
        published = _published(source, origin, staging.with_name(f".{known.name}.published"), meter)
        unfinished = staging / f".{source.part}"
        shutil.rmtree(unfinished, ignore_errors=True)
        with full_disk_explained(staging, f"the {source.part} of {known.name} was being converted"):
            convert(published, unfinished, source.part)
        unfinished.rename(part)
        shutil.rmtree(staging.with_name(f".{known.name}.published"), ignore_errors=True)
    model_folder.write_manifest(
        staging,
        name=known.name,
        stage=known.stage,
        origin=origin or ", ".join(source.location for source in known.sources),
        licence=known.licence,
    )


def _converter(stage: str) -> Any:
    """services.<stage>.convert.convert; imported by name, for it brings the stage's libraries along."""
    try:
        return importlib.import_module(f"services.{stage}.convert").convert
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{error.name} is not installed, and the {stage}'s files are converted with it; run: pip install "
            f"'triptych[{stage}]', or push the model to the S3 cache from a machine that has it"
        ) from None


def _published(source: Source, origin: str, folder: Path, meter: Meter) -> Path:
    """The file or folder to convert: downloaded, or where it lies when `origin` is a folder of this machine."""
    names = source.files or (source.location.rpartition("/")[2],)
    if origin and "://" not in origin:
        return _local(Path(origin), source, names)
    base = (
        origin.rstrip("/")
        if origin
        else (source.location if source.files else source.location.rpartition("/")[0])
    )
    into = folder / source.part
    if urlsplit(base).scheme == "wandb":
        _fetch_artifact(base.removeprefix("wandb://"), into)
    else:
        for name in names:
            with closing(_remote(base, source.part if origin else "", name)) as remote:
                download(remote, into / name, report=meter.report)
            meter.next_file()
    return into if source.files else into / names[0]


def _remote(base: str, part: str, name: str) -> Remote:
    """Files of parts may have the same names, so a place of the caller's may have them in folders."""
    if part:
        try:
            return open_remote(f"{base}/{part}/{name}")
        except NotThere:
            pass
    return open_remote(f"{base}/{name}")


def _local(root: Path, source: Source, names: tuple[str, ...]) -> Path:
    for candidate in (root / source.part, root):
        if all((candidate / name).is_file() for name in names):
            return candidate if source.files else candidate / names[0]
    raise ModelError(f"{root} holds no {', '.join(names)}: expected them there or in {root / source.part}")


def _fetch_artifact(name: str, into: Path) -> None:
    try:
        import wandb  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        raise ModelError(
            f"{name} is a Weights & Biases artifact: run `pip install wandb`, or give a folder with its files with --from"
        ) from None
    artifact: Any = wandb.Api(overrides={"entity": name.split("/")[0]}).artifact(name)
    artifact.download(root=str(into))


def remove(name: str, stage: str) -> list[Path]:
    """Removes a model, and what is left of attempts at it, from this machine's caches; returns what was removed."""
    removed = []
    for root in filter(None, (user_cache(), machine_cache())):
        parent = root / "models" / stage
        for folder in (parent / name, parent / f".{name}.fetching", parent / f".{name}.published"):
            if folder.is_dir():
                with locked(parent / name):
                    shutil.rmtree(folder)
                removed.append(folder)
    return removed
