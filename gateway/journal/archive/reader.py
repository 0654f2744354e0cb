"""Import of runs: validates a whole archive, then takes it into a journal and a store, run by run.

Nothing is taken of an archive that is not valid. Each run is one transaction, after its pictures; runs that are there already
are left alone. So an import that was stopped is continued by importing the archive again.
"""

import asyncio
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from gateway.journal.archive.format import (
    FORMAT,
    HEADER,
    MAX_HEADER_BYTES,
    MAX_PICTURE_BYTES,
    MAX_RUN_BYTES,
    MAX_SUMS_BYTES,
    PICTURE_MEMBER,
    RUN_MEMBER,
    SUMS,
    ArchivedRun,
    InvalidArchive,
)
from gateway.journal.database import Database
from gateway.journal.journal import image_row, state_columns
from gateway.journal.schema import events, expired, images, runs
from gateway.store.base import Store
from triptych._files import check_is_file
from triptych.v1.pipeline_pb2 import Event

PART_BYTES = 2**20


@dataclass
class Imported:
    """`present`: runs that the journal had already; `without_request_id`: those whose request_id another run has."""

    num_runs: int = 0
    num_pictures: int = 0
    present: list[str] = field(default_factory=list)
    without_request_id: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArchiveSummary:
    """What a valid archive holds. `missing`: pictures of each run that were not there when it was written."""

    num_runs: int
    num_pictures: int
    num_bytes: int
    missing: dict[str, list[str]]


def check_archive(path: Path) -> ArchiveSummary:
    """Reads all of it. Raises InvalidArchive for anything but a complete archive, and OSError."""
    seen: dict[str, str] = {}
    num_runs = num_pictures = num_bytes = 0
    pictures: set[str] = set()
    missing: dict[str, list[str]] = {}
    with _members(path) as members:
        for name, size, file in members:
            if SUMS in seen:
                raise InvalidArchive(f"{path}: has members after {SUMS}")
            if name in seen:
                raise InvalidArchive(f"{path}: has {name} twice")
            if name == SUMS:
                _check_sums(path, file.read(), seen)
                seen[SUMS] = ""
            elif match := PICTURE_MEMBER.fullmatch(name):
                seen[name] = _hash(file)
                if seen[name] != match[1]:
                    raise InvalidArchive(f"{path}: {name} has other bytes than its name says")
                pictures.add(match[1])
                num_pictures, num_bytes = num_pictures + 1, num_bytes + size
            else:
                data = file.read()
                seen[name] = hashlib.sha256(data).hexdigest()
                if name == HEADER:
                    _check_header(path, data)
                else:
                    run = _parse(path, name, data)
                    wanted = dict.fromkeys(image.sha256 for image in run.images())
                    if lost := [sha256 for sha256 in wanted if sha256 not in pictures]:
                        missing[run.name] = lost
                    num_runs += 1
            if next(iter(seen)) != HEADER:
                raise InvalidArchive(f"{path}: is no archive of runs")
    if SUMS not in seen:
        raise InvalidArchive(f"{path}: is cut off; its last member is not {SUMS}")
    return ArchiveSummary(num_runs, num_pictures, num_bytes, missing)


async def import_runs(
    path: Path, database: Database, store: Store, *, on_run: Callable[[str], None] = lambda name: None
) -> Imported:
    """Takes an archive that `check_archive` has found valid. Raises StoreFull, StoreUnavailable, JournalUnavailable."""
    imported = Imported()
    with _members(path) as members:
        for name, size, file in members:
            if (match := PICTURE_MEMBER.fullmatch(name)) and match[1]:
                await _put(store, size, file, match[1])
                imported.num_pictures += 1
            elif RUN_MEMBER.fullmatch(name):
                run = _parse(path, name, file.read())
                outcome = await database.write(lambda connection, run=run: _insert(connection, run))  # type: ignore[misc]  # a lambda with a default
                if outcome is None:
                    imported.present.append(run.name)
                    continue
                if outcome != run.request_id:
                    imported.without_request_id.append(run.name)
                imported.num_runs += 1
                on_run(run.name)
    return imported


def _insert(connection: sa.Connection, run: ArchivedRun) -> str | None:
    """The request_id that it has from now on; None where the run is there already."""
    if connection.execute(sa.select(runs.c.name).where(runs.c.name == run.name)).first():
        return None
    same = sa.and_(runs.c.caller == run.caller, runs.c.request_id == run.request_id)
    is_taken = run.request_id and connection.execute(sa.select(runs.c.name).where(same)).first()
    request_id = "" if is_taken else run.request_id
    connection.execute(
        sa.insert(runs).values(
            {
                "owner": None,
                **state_columns(run.state()),
                "name": run.name,
                "caller": run.caller,
                "request_id": request_id or None,
                "asked": run.asked,
                "create_time_ns": run.events[0].time.ToNanoseconds(),
                "is_detached": run.is_detached,
                "deadline_ns": run.deadline_ns,
                "traceparent": run.traceparent or None,
            }
        )
    )
    rows = [{"run": run.name, "sequence": one.sequence, "payload": _payload(one)} for one in run.events]
    connection.execute(sa.insert(events), rows)
    # A mask that two selections have is one image of the run.
    if pictures := {image.name: image_row(run.name, image) for image in run.images()}:
        connection.execute(sa.insert(images), list(pictures.values()))
    connection.execute(sa.delete(expired).where(expired.c.run == run.name))
    return request_id


def _payload(event: Event) -> bytes:
    return b"" if event.HasField("preview") else event.SerializeToString()


async def _put(store: Store, size: int, file: IO[bytes], sha256: str) -> None:
    if size <= 16 * PART_BYTES:
        kept = await store.put(file.read())
    else:
        with tempfile.NamedTemporaryFile(prefix="triptych-") as copy:
            while part := file.read(PART_BYTES):
                await asyncio.to_thread(copy.write, part)
            copy.flush()
            kept = await store.put_file(Path(copy.name))
    if kept != sha256:
        raise InvalidArchive(f"pictures/{sha256} was changed while it was read")


@contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    """Name, size and content of each, checked as far as the header goes; the content is read before the next one."""
    check_is_file(path)
    try:
        with tarfile.open(path, "r:") as tar:
            yield _checked(path, tar)
    except tarfile.TarError as error:
        raise InvalidArchive(f"{path}: is damaged or no archive: {error}") from None
    except EOFError:
        raise InvalidArchive(f"{path}: is cut off") from None


def _checked(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    while (member := tar.next()) is not None:
        # tarfile keeps every member for random access.
        tar.members.clear()  # type: ignore[attr-defined]
        name = member.name
        most = (
            MAX_HEADER_BYTES
            if name == HEADER
            else MAX_SUMS_BYTES
            if name == SUMS
            else MAX_PICTURE_BYTES
            if PICTURE_MEMBER.fullmatch(name)
            else MAX_RUN_BYTES
            if RUN_MEMBER.fullmatch(name)
            else -1
        )
        # Links, devices, sparse files, and names that lead elsewhere.
        if member.type != tarfile.REGTYPE or most < 0 or member.pax_headers:
            raise InvalidArchive(f"{path}: has a member that no export writes: {name[:80]!r}")
        if member.size > most:
            raise InvalidArchive(f"{path}: {name} has {member.size} bytes, and at most {most} are allowed")
        file = tar.extractfile(member)
        if file is None:
            raise InvalidArchive(f"{path}: {name[:80]!r} has no content")
        yield name, member.size, file


def _hash(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while part := file.read(PART_BYTES):
        digest.update(part)
    return digest.hexdigest()


def _check_header(path: Path, data: bytes) -> None:
    try:
        header = json.loads(data)
        written = header["format"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InvalidArchive(f"{path}: is no archive of runs") from None
    if written != FORMAT:
        writer = str(header.get("triptych"))[:40]
        raise InvalidArchive(
            f"{path}: has the format {str(written)[:40]}, written by Triptych {writer}; this release reads format {FORMAT}"
        )


def _check_sums(path: Path, data: bytes, seen: dict[str, str]) -> None:
    expected = "".join(f"{sha256}  {name}\n" for name, sha256 in seen.items())
    if data != expected.encode():
        raise InvalidArchive(f"{path}: what it holds is not what {SUMS} lists")


def _parse(path: Path, name: str, data: bytes) -> ArchivedRun:
    try:
        run = ArchivedRun.from_json(data)
    except InvalidArchive as error:
        raise InvalidArchive(f"{path}: {name} {error}") from None
    if f"{run.name}.json" != name:
        raise InvalidArchive(f"{path}: {name} holds {run.name}")
    return run
