"""Compares the journal with the store: pictures of runs that the store does not have, and pictures that no run has.

After one of the two was restored from an older backup they differ. `StorageAudit` finds it at the start of a gateway.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from gateway.journal.reader import JournalReader
from gateway.journal.schema import images
from gateway.store.base import Store, StoredImage
from services.errors import NotFound, TriptychError

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 5_000
AUDIT_EVERY_S = 3_600.0
RETRY_AFTER_S = 60.0
# Runs that a gateway's log names one by one.
MAX_LINES = 100


@dataclass(frozen=True)
class Differences:
    """`missing`: names of the images of each run whose files the store lacks; `num_images`: all that each of them has."""

    missing: Mapping[str, list[str]] = field(default_factory=dict)
    num_images: Mapping[str, int] = field(default_factory=dict)
    unreferenced: tuple[StoredImage, ...] = ()

    @property
    def num_missing(self) -> int:
        return sum(map(len, self.missing.values()))

    def __str__(self) -> str:
        """Empty where nothing is missing."""
        if not self.missing:
            return ""
        return f"{self.num_missing} pictures of {len(self.missing)} runs are missing in the store"


async def compare(reader: JournalReader, store: Store) -> Differences:
    """Reads the journal first, so that an image that is stored meanwhile is not taken for missing."""
    rows: list[tuple[str, str, bytes]] = []
    after = ""
    while True:
        query = (
            sa.select(images.c.name, images.c.run, images.c.sha256)
            .where(images.c.name > after)
            .order_by(images.c.name)
            .limit(ROWS_AT_ONCE)
        )
        part = await reader.rows(query)
        rows += [(row.name, row.run, bytes.fromhex(row.sha256)) for row in part]
        if len(part) < ROWS_AT_ONCE:
            break
        after = part[-1].name
    wanted = {sha256 for _, _, sha256 in rows}
    stored: set[bytes] = set()
    unreferenced = []
    async for one in store.iterate():
        sha256 = bytes.fromhex(one.sha256)
        stored.add(sha256)
        if sha256 not in wanted:
            unreferenced.append(one)
    missing: dict[str, list[str]] = {}
    for name, run, sha256 in rows:
        if sha256 not in stored and await _is_missing(reader, store, name, sha256.hex()):
            missing.setdefault(run, []).append(name)
    counts = dict.fromkeys(missing, 0)
    for _, run, _ in rows:
        if run in counts:
            counts[run] += 1
    return Differences(missing, counts, tuple(unreferenced))


async def _is_missing(reader: JournalReader, store: Store, name: str, sha256: str) -> bool:
    """Asked again: the run may have been deleted since its rows were read, or the picture stored again."""
    if await reader.find_image(name) is None:
        return False
    try:
        await store.size(sha256)
    except NotFound:
        return True
    return False


class StorageAudit:
    """Compares at the start and every hour; `on_change` is called with what is missing when that changes."""

    def __init__(
        self,
        reader: JournalReader,
        store: Store,
        on_change: Callable[[Differences], Awaitable[None]] | None = None,
    ) -> None:
        self.differences = Differences()
        self._reader = reader
        self._store = store
        self._on_change = on_change

    async def run_forever(self) -> None:
        while True:
            try:
                await self.run()
                await asyncio.sleep(AUDIT_EVERY_S)
            except TriptychError as error:
                log.warning("journal and store cannot be compared now: %s", error)
                await asyncio.sleep(RETRY_AFTER_S)

    async def run(self) -> None:
        """Compares once, and reports what has changed."""
        before, self.differences = self.differences, await compare(self._reader, self._store)
        if before.missing == self.differences.missing:
            return
        for run, names in list(self.differences.missing.items())[:MAX_LINES]:
            log.warning(
                "%s lacks %d of its %d pictures in the store",
                run,
                len(names),
                self.differences.num_images[run],
                extra={"event": "pictures_missing", "run": run, "num_missing": len(names)},
            )
        if self.differences.missing:
            log.error(
                "%s; see `triptych journal compare`", self.differences, extra={"event": "store_incomplete"}
            )
        else:
            log.info("the store has all pictures of the journal again", extra={"event": "store_complete"})
        if self._on_change is not None:
            await self._on_change(self.differences)
