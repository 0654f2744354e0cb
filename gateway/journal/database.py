"""Runs whole transactions of a SQLite file on threads.

One thread writes, as SQLite has it; a few read.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import sqlalchemy as sa

Result = TypeVar("Result")

NUM_READERS = 3


class SqliteThreads:
    """Both calls raise what SQLAlchemy does. A call that is cancelled is still carried out."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal-writer")
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="journal-reader")

    async def write(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Does the work in a transaction."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._transact, work)

    async def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Does work that writes nothing."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._look, work)

    def close(self) -> None:
        """Waits for what is under way."""
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    def _transact(self, work: Callable[[sa.Connection], Any]) -> Any:
        with self._engine.begin() as connection:
            return work(connection)

    def _look(self, work: Callable[[sa.Connection], Any]) -> Any:
        with self._engine.connect() as connection:
            return work(connection)
