"""Export of runs: writes an archive from a journal and a store. A file appears under its name only when it is complete."""

import asyncio
import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import sqlalchemy as sa

from gateway.events.run_state import is_idle
from gateway.journal.archive.format import FORMAT, HEADER, SUMS, ArchivedRun
from gateway.journal.reader import JournalReader
from gateway.journal.schema import runs
from gateway.store.base import ImageCorrupted, Store
from services.errors import NotFound
from triptych import __version__
from triptych._files import replacing

RUNS_AT_ONCE = 500
# Larger pictures go through a file.
MEMORY_BYTES = 16 * 2**20


@dataclass
class Exported:
    """`missing`: the pictures of each run that the store does not have, or has damaged."""

    num_runs: int = 0
    num_pictures: int = 0
    num_bytes: int = 0
    num_under_way: int = 0
    missing: dict[str, list[str]] = field(default_factory=dict)


async def export_runs(
    reader: JournalReader,
    store: Store,
    to: Path,
    *,
    names: Collection[str] = (),
    with_unfinished: bool = False,
    on_run: Callable[[str], None] = lambda name: None,
) -> Exported:
    """Writes the runs of these `names`, or all; those that are under way only `with_unfinished`. Raises OSError."""
    with replacing(to, mode=0o600) as file:
        return await _write(file, reader, store, set(names), with_unfinished, on_run)


async def _write(
    file: IO[bytes],
    reader: JournalReader,
    store: Store,
    names: set[str],
    with_unfinished: bool,
    on_run: Callable[[str], None],
) -> Exported:
    exported, sums = Exported(), io.StringIO()
    problems: dict[str, bool] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            _add(tar, name, len(data), io.BytesIO(data))
            sums.write(f"{hashlib.sha256(data).hexdigest()}  {name}\n")

        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        add(HEADER, json.dumps({"format": FORMAT, "triptych": __version__, "created": created}).encode())
        async for name in _names(reader):
            if names and name not in names:
                continue
            run = await _read_run(reader, name)
            if run is None:
                continue
            if not with_unfinished and not is_idle(run.state().state):
                exported.num_under_way += 1
                continue
            for sha256 in dict.fromkeys(image.sha256 for image in run.images()):
                if sha256 not in problems:
                    num_bytes = await _add_picture(tar, store, sha256)
                    problems[sha256] = num_bytes is None
                    if num_bytes is not None:
                        sums.write(f"{sha256}  pictures/{sha256}\n")
                        exported.num_pictures += 1
                        exported.num_bytes += num_bytes
                if problems[sha256]:
                    exported.missing.setdefault(name, []).append(sha256)
            add(f"{name}.json", run.to_json())
            exported.num_runs += 1
            on_run(name)
        text = sums.getvalue().encode()
        _add(tar, SUMS, len(text), io.BytesIO(text))
    return exported


async def _names(reader: JournalReader) -> AsyncIterator[str]:
    """All runs, the oldest first."""
    after = (-1, "")
    while True:
        query = (
            sa.select(runs.c.create_time_ns, runs.c.name)
            .where(sa.tuple_(runs.c.create_time_ns, runs.c.name) > sa.tuple_(*after))
            .order_by(runs.c.create_time_ns, runs.c.name)
            .limit(RUNS_AT_ONCE)
        )
        rows = await reader.rows(query)
        for row in rows:
            yield row.name
        if len(rows) < RUNS_AT_ONCE:
            return
        after = rows[-1].create_time_ns, rows[-1].name


async def _read_run(reader: JournalReader, name: str) -> ArchivedRun | None:
    """None where it was deleted meanwhile."""
    events = await reader.read_log(name)
    rows = await reader.rows(sa.select(runs).where(runs.c.name == name))
    if not rows or not events:
        return None
    row = rows[0]
    return ArchivedRun(
        name=name,
        caller=row.caller,
        request_id=row.request_id or "",
        asked=row.asked,
        is_detached=row.is_detached,
        deadline_ns=row.deadline_ns,
        traceparent=row.traceparent or "",
        events=tuple(events),
        init_images=tuple((await reader.init_images(name)).values()),
    )


async def _add_picture(tar: tarfile.TarFile, store: Store, sha256: str) -> int | None:
    """How many bytes it has; None where the store does not have it, or has it damaged."""
    try:
        num_bytes = await store.size(sha256)
        if num_bytes <= MEMORY_BYTES:
            data = await store.get(sha256)
            await asyncio.to_thread(_add, tar, f"pictures/{sha256}", len(data), io.BytesIO(data))
            return len(data)
        with tempfile.TemporaryFile() as file:
            digest = hashlib.sha256()
            async with aclosing(store.read_parts(sha256, 0, num_bytes)) as parts:
                async for part in parts:
                    digest.update(part)
                    await asyncio.to_thread(file.write, part)
            if digest.hexdigest() != sha256 or file.tell() != num_bytes:
                return None
            file.seek(0)
            await asyncio.to_thread(_add, tar, f"pictures/{sha256}", num_bytes, file)
            return num_bytes
    except (NotFound, ImageCorrupted):
        return None


def _add(tar: tarfile.TarFile, name: str, num_bytes: int, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = num_bytes, 0o600
    tar.addfile(member, file)
