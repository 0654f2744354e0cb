"""How long runs and their pictures are kept: by age, and by how much room all pictures take; the oldest go first.

A deleted run leaves a marker for a while, so that requests for it get EVENTS_EXPIRED. Images
that no run has, such as those of a gateway that died between keeping one and telling of it, go once they are old.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.journal.journal import Journal
from gateway.store.base import Store
from services.errors import NotFound, TriptychError

log = logging.getLogger(__name__)

FIRST_SWEEP_AFTER_S = 30.0
SWEEP_EVERY_S = 600.0
DAY_S = 86_400.0
# Between keeping a picture and telling of it lies a moment; what is older and belongs to no run never will.
UNTOLD_AGE_S = 600.0
# How long it is remembered that there was a run.
REMEMBERED_S = 90 * DAY_S
AT_ONCE = 500


class EventsExpired(NotFound):
    reason = "EVENTS_EXPIRED"


@dataclass(frozen=True)
class RetentionLimits:
    """None: without an end."""

    age_s: float | None = None
    num_bytes: int | None = None


@dataclass(frozen=True)
class SweepResult:
    """What one round has deleted."""

    num_runs: int = 0
    num_pictures: int = 0
    num_bytes: int = 0


class Retention:
    """Deletes what is older, or more, than the limits. Running runs are never deleted."""

    def __init__(self, keep: RetentionLimits, journal: Journal, store: Store) -> None:
        self._keep = keep
        self._journal = journal
        self._store = store

    async def sweep_forever(self) -> None:
        delay_s = FIRST_SWEEP_AFTER_S
        while True:
            await asyncio.sleep(delay_s)
            delay_s = SWEEP_EVERY_S
            try:
                swept = await self.sweep()
            except TriptychError as error:
                log.warning("old runs stay for now: %s", error)
            except Exception:
                log.exception("sweeping failed")
            else:
                if swept != SweepResult():
                    log.info(
                        "deleted %d runs and %d images (%d bytes)",
                        swept.num_runs,
                        swept.num_pictures,
                        swept.num_bytes,
                    )

    async def sweep(self) -> SweepResult:
        """One round. Raises JournalUnavailable or StoreUnavailable, and then goes on next time."""
        if self._journal.is_behind:
            return SweepResult()  # runs have pictures that the journal does not know yet
        now = time.time()
        pictures = {one.sha256: one async for one in self._store.iterate()}
        sizes = {sha256: one.num_bytes for sha256, one in pictures.items()}
        before = sum(sizes.values())
        num_runs = await self._expire_old(now, sizes)
        num_runs += await self._expire_largest(now, sizes)
        await self._drop_unwanted([*sizes], now, sizes)
        await self._journal.forget_expired(now - REMEMBERED_S)
        return SweepResult(num_runs, len(pictures) - len(sizes), before - sum(sizes.values()))

    async def _expire_old(self, now: float, sizes: dict[str, int]) -> int:
        if self._keep.age_s is None:
            return 0
        num_runs = 0
        while names := await self._journal.reader.finished_before(
            int((now - self._keep.age_s) * 1e9), AT_ONCE
        ):
            expired = [await self._expire(name, now, sizes) for name in names]
            num_runs += sum(expired)
            if not any(expired):
                break
        return num_runs

    async def _expire_largest(self, now: float, sizes: dict[str, int]) -> int:
        """Lets the oldest finished runs go until all pictures fit."""
        if self._keep.num_bytes is None:
            return 0
        num_runs = 0
        while sum(sizes.values()) > self._keep.num_bytes:
            names = await self._journal.reader.finished_before(int(now * 1e9), AT_ONCE)
            num_before = num_runs
            for name in names:
                if sum(sizes.values()) <= self._keep.num_bytes:
                    break
                num_runs += await self._expire(name, now, sizes)
            if num_runs == num_before:
                log.warning(
                    "the pictures take %d bytes and are to take %d, and no more runs have finished",
                    sum(sizes.values()),
                    self._keep.num_bytes,
                )
                break
        return num_runs

    async def _expire(self, name: str, now: float, sizes: dict[str, int]) -> bool:
        hashes = await self._journal.delete_run(name, expired_at=now)
        if hashes is None:  # it goes on again
            return False
        log.info("%s expired", name)
        await self._drop_unwanted(hashes, now, sizes)
        return True

    async def _drop_unwanted(self, hashes: Sequence[str], now: float, sizes: dict[str, int]) -> None:
        """Deletes those that no run has and takes them from `sizes`; what is too young for it goes in a later round."""
        for start in range(0, len(hashes), AT_ONCE):
            some = hashes[start : start + AT_ONCE]
            for sha256 in set(some) - await self._journal.reader.wanted(some):
                await self._store.delete(sha256, put_before=now - UNTOLD_AGE_S)
                sizes.pop(sha256, None)
