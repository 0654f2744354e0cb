"""Finds models in the caches, in S3 or at their publishers.

The order of look-up: a path, the built-in models, TRIPTYCH_MODELS (all three: model_folder.py), then here the user's
cache (TRIPTYCH_CACHE, else below ~/.cache), the machine's (TRIPTYCH_MACHINE_CACHE, shared by its containers), the S3
cache (TRIPTYCH_S3_CACHE=s3://BUCKET/PREFIX), and the origin. A model in a cache is whole: it gets its name last.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.errors import ModelError
from services.weights import model_folder
from services.weights.catalog import KNOWN, known_model
from services.weights.download import ProgressMeter, Report, locked
from services.weights.fetch import pull_model, pull_published, read_manifest_at
from services.weights.model_folder import BUILT_IN_FOLDER, MANIFEST, FileEntry, Manifest
from services.weights.names import check_model_name, is_model_name
from services.weights.remotes import NotThere, S3Remote, check_bucket, s3_client, s3_errors, split_s3
from triptych.stages import WORKER_NAMES

log = logging.getLogger(__name__)

LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class CachedModel:
    """A model folder, and where it was taken from."""

    folder: Path
    place: str
    seconds: float = 0.0


def user_cache() -> Path:
    root = os.environ.get("TRIPTYCH_CACHE")
    return Path(root) if root else cache_home() / "triptych"


def cache_home() -> Path:
    """Where the user's programs keep what they can make again; without a home, a folder that lasts as long as /tmp."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base)
    home = os.path.expanduser("~")
    if home.startswith("~"):
        return Path(tempfile.gettempdir()) / f"triptych-{os.getuid()}"
    return Path(home) / ".cache"


def machine_cache() -> Path | None:
    root = os.environ.get("TRIPTYCH_MACHINE_CACHE")
    return Path(root) / "triptych" if root else None


def s3_cache() -> str | None:
    location = os.environ.get("TRIPTYCH_S3_CACHE")
    return location.rstrip("/") if location else None


def find_cached(name: str, stage: str) -> CachedModel | None:
    """A model that was fetched before; None also for what is no name of a model."""
    if not is_model_name(name):
        return None
    for place, root in (("the user's cache", user_cache()), ("the machine's cache", machine_cache())):
        if root is not None and (root / "models" / stage / name / MANIFEST).is_file():
            return CachedModel(root / "models" / stage / name, place)
    return None


def open_model(name_or_folder: str, stage: str) -> tuple[Path, Manifest]:
    """Finds a stage's model wherever it may be, fetches it if necessary, checks it, and reports where it came from.

    Raises ModelError.
    """
    started = time.monotonic()
    try:
        found = CachedModel(model_folder.find_model(name_or_folder, stage), "its folder")
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
    last_message_at = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last_message_at
        if time.monotonic() - last_message_at > LOG_EVERY_S:
            last_message_at = time.monotonic()
            log.info("fetching %s: %d of %d MB", name, done // 10**6, total // 10**6)

    return show


def fetch(
    name: str,
    stage: str,
    *,
    origin: str = "",
    half: bool = False,
    show: Report = lambda done, total: None,
) -> CachedModel:
    """Brings a model into the cache, from S3 or from its origin, and reports where it came from and how long it took.

    `origin` names another place than the published one: a folder or address with a model, or with the files that were
    published. `half` keeps what is converted in float16. Raises ModelError. What has arrived is kept; the next call goes on from it.
    """
    check_model_name(name)
    if not origin and (found := find_cached(name, stage)):
        return found
    folder = (machine_cache() or user_cache()) / "models" / stage / name
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not origin and (found := find_cached(name, stage)):  # another process was quicker
            return found
        staging = folder.with_name(f".{name}.fetching")
        place = origin.rstrip("/")
        manifest = None
        if origin:
            with suppress(
                ModelError
            ):  # then the published files lie there, or an error will say what does not
                manifest = read_manifest_at(place)
        elif bucket := s3_cache():
            place = f"{bucket}/{stage}/{name}"
            try:
                manifest = read_manifest_at(place)
            except NotThere:
                check_bucket(bucket)  # else gigabytes would come from far away for a misspelt name
        if manifest is None:
            pull_published(known_model(name, stage), origin, staging, show, half=half)
            place = origin or "where it was published"
        elif manifest[1].stage != stage:
            raise ModelError(f"{place} is a model of the {manifest[1].stage}; expected one of the {stage}")
        else:
            pull_model(place, manifest, staging, show)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    found = CachedModel(folder, place, time.monotonic() - started)
    log.info("%s %s: from %s in %.0f s", stage, name, found.place, found.seconds)
    return found


def push(folder: Path, bucket: str, *, force: bool = False, show: Report = lambda done, total: None) -> str:
    """Copies a model folder to BUCKET/PREFIX/STAGE/NAME and returns that place.

    What is there already, by its manifest, is left unless `force` is set. The manifest goes last: a reader sees a whole model or none. Raises ModelError.
    """
    manifest = model_folder.read_manifest(folder)
    check_model_name(manifest.name)
    model_folder.check_files(folder, manifest)
    place = f"{bucket.rstrip('/')}/{manifest.stage}/{manifest.name}"
    name, prefix = split_s3(place)
    client = s3_client()
    meter = ProgressMeter(sum(entry.num_bytes for entry in manifest.files.values()), show)
    for file, entry in manifest.files.items():
        location = f"{place}/{file}"
        if force or not _is_there(location, client, entry):
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


def local_models() -> Iterator[tuple[str, str, Path]]:
    """Stage, name and folder of every model that a service would find by name."""
    for stage in WORKER_NAMES:
        roots = [BUILT_IN_FOLDER / stage / "models"]
        if own := os.environ.get("TRIPTYCH_MODELS"):
            roots.append(Path(own) / stage)
        roots += [cache / "models" / stage for cache in (user_cache(), machine_cache()) if cache]
        for root in roots:
            for folder in sorted(path for path in root.glob("[!.]*") if path.is_dir()):
                yield stage, folder.name, folder


def models_in_s3(bucket: str) -> dict[tuple[str, str], int]:
    """Stage and name of every whole model below BUCKET/PREFIX, with its bytes; raises ModelError."""
    name, prefix = split_s3(bucket)
    root = f"{prefix}/" if prefix else ""
    sizes: dict[tuple[str, str], int] = {}
    whole = set()
    with s3_errors(bucket):
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=root)
        for entry in (entry for page in pages for entry in page.get("Contents", [])):
            match entry["Key"].removeprefix(root).split("/"):
                case [stage, model, *rest] if stage in WORKER_NAMES and rest and is_model_name(model):
                    sizes[stage, model] = sizes.get((stage, model), 0) + entry["Size"]
                    if rest == [MANIFEST]:
                        whole.add((stage, model))
    return {key: size for key, size in sizes.items() if key in whole}


def removable(name: str, stage: str) -> list[Path]:
    """The folders of a model, and of attempts at it, in this machine's caches.

    Raises ModelError for what is no name, and for a folder that no `pull` has made: a link, or one without a manifest.
    """
    check_model_name(name)
    found = []
    for root in filter(None, (user_cache(), machine_cache())):
        parent = root / "models" / stage
        for folder in (parent / name, parent / f".{name}.fetching", parent / f".{name}.published"):
            if folder.is_symlink():
                raise ModelError(
                    f"{folder} is a link, which no `triptych weights pull` has made: remove it yourself"
                )
            if not folder.is_dir():
                continue
            if folder == parent / name and model_folder.read_manifest(folder).stage != stage:
                raise ModelError(f"{folder} holds a model of another stage: remove it yourself")
            found.append(folder)
    return found


def remove(name: str, stage: str) -> list[Path]:
    """Removes what `removable` lists; returns it. Raises ModelError."""
    folders = removable(name, stage)
    for folder in folders:
        with locked(folder.parent / name):
            shutil.rmtree(folder)
    return folders
