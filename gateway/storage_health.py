"""Health of journal and store: whether they are the ones that were opened, belong together, and can be used.

While they are not, health reports NOT_SERVING and no run is accepted, so nothing is accepted that would be lost.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from gateway.journal.journal import Journal
from gateway.journal.journal_file import InvalidJournal
from gateway.store.base import InvalidStore, Store
from services.errors import TriptychError
from triptych._redaction import without_passwords

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
# One that does not answer for so long is reported.
TIMEOUT_S = 5.0
# A check of the whole file may take this share of the time, so that a large journal is checked less often.
FILE_CHECK_SHARE = 0.05


async def check_pair(journal: Journal, store: Store, *, adopts: bool, is_lasting: bool) -> None:
    """Raises InvalidStore if the store's images belong to another journal, which would then be deleted as those of no run.

    A store remembers the id of its journal. With `adopts`, it is this one from now on. A journal that ends with the process
    (not `is_lasting`) leaves no mark.
    """
    mine, theirs = await journal.id(), await store.read_owner()
    if not adopts and theirs != mine:
        is_used = (
            theirs is not None or is_lasting and not await journal.has_runs() and await _has_images(store)
        )
        if is_used:
            raise InvalidStore(
                f"the store {without_passwords(str(store))} has images of another journal than "
                f"{without_passwords(str(journal.database.url.database))}, and they would be deleted as images of no run. Name "
                "its own journal with --journal, or another store with --store. If that journal is lost for good, start once "
                "with --adopt-store"
            )
    if is_lasting and theirs != mine:
        await store.write_owner(mine)


async def _has_images(store: Store) -> bool:
    images = store.iterate()
    try:
        return await anext(images, None) is not None
    finally:
        await images.aclose()


class StorageHealth:
    """`problem` is empty while journal and store can be used; `on_change` is called when it changes."""

    def __init__(self, journal: Journal, store: Store, on_change: Callable[[str], Awaitable[None]]) -> None:
        self.problem = ""
        self._journal = journal
        self._store = store
        self._on_change = on_change
        self._next_file_check = 0.0

    async def watch_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Looks once."""
        problem = await self._find_problem()
        if problem == self.problem:
            return
        self.problem = problem
        log.log(
            logging.ERROR if problem else logging.INFO,
            "%s",
            problem or "journal and store are there again",
            extra={"event": "storage_failed" if problem else "storage_restored"},
        )
        await self._on_change(problem)

    async def _find_problem(self) -> str:
        for what, check in (("journal", self._check_journal), ("store", self._store.check)):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await check()
            except TimeoutError:
                return f"the {what} does not answer within {TIMEOUT_S:g} s"
            except (TriptychError, OSError) as error:
                return without_passwords(str(error))
        return ""

    async def _check_journal(self) -> None:
        database = self._journal.database
        await asyncio.to_thread(database.check_file)
        if database.is_shared:
            await self._journal.check_id()
        elif time.monotonic() >= self._next_file_check:
            # Not ended by the timeout: a large file takes longer than that.
            began = time.monotonic()
            checking = asyncio.ensure_future(asyncio.to_thread(database.find_damage))
            self._next_file_check = float("inf")
            checking.add_done_callback(lambda _: self._plan_file_check(began))
            await asyncio.wait([checking], timeout=TIMEOUT_S / 2)
        if damage := database.damage:
            raise InvalidJournal(
                f"the journal is damaged ({damage}): stop this gateway and run `triptych journal check`"
            )

    def _plan_file_check(self, began: float) -> None:
        ended = time.monotonic()
        self._next_file_check = ended + (ended - began) / FILE_CHECK_SHARE
