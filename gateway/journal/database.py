"""The journal's database: a SQLite file for one gateway, PostgreSQL for several.

Work is a function of a Core connection. It runs in one transaction: on a thread for SQLite, which spares a hop for every
statement, and through asyncpg for PostgreSQL.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.journal.journal_file import InvalidJournal, JournalFile
from gateway.journal.migration import prepare
from services.errors import TriptychError
from triptych._installation import missing_library
from triptych._redaction import without_passwords

# Another program that reads the file holds it up no longer than this.
BUSY_TIMEOUT_S = 5.0
# Threads that read a SQLite file; one writes.
NUM_READERS = 3

# A gateway that was stopped, or unplugged, in the middle of a transaction must not keep its rows locked: others are to
# take over its runs.
_POSTGRESQL_SETTINGS = {
    "idle_in_transaction_session_timeout": "5s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

DAMAGED = "its file is damaged; stop this gateway and run `triptych journal check`"

Result = TypeVar("Result")
Work = Callable[[sa.Connection], Result]


class JournalUnavailable(TriptychError):
    """The journal cannot be written or read now. Events that were sent stay valid, and runs continue when it works again."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "JOURNAL_FAILED"
    retry_after_s = 5.0

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        # What the database said, for the log.
        self.cause = cause


class Database:
    """Both methods raise JournalUnavailable. Work that is cancelled may still be carried out."""

    def __init__(self, engine: "_Sqlite | _Postgresql") -> None:
        self._engine = engine
        # Whether other gateways may write it, too: then each writes only of the runs that it owns.
        self.is_shared = isinstance(engine, _Postgresql)
        # As traces name it.
        self.kind = "postgresql" if self.is_shared else "sqlite"
        # `INSERT` with `ON CONFLICT`, in the database's dialect.
        self.insert: Any = postgresql.insert if self.is_shared else sqlite.insert
        self._one_at_a_time = asyncio.Lock()
        # What is wrong with the file; empty where nothing is.
        self.damage = ""

    @property
    def url(self) -> sa.URL:
        return self._engine.url

    def check_file(self) -> None:
        """Raises FileNotFoundError when the file of a journal in SQLite is gone or was replaced."""
        self._engine.check_file()

    def find_damage(self) -> None:
        """Reads the whole file of a journal in SQLite and sets `damage`. Blocks for as long as that takes."""
        self.damage = self._engine.find_damage()

    async def write(self, work: Work[Result]) -> Result:
        """Does the work in a transaction; one at a time, as SQLite has it. Nothing is written to a damaged file."""
        if self.damage:
            raise JournalUnavailable(f"the journal cannot be used: {DAMAGED}", self.damage)
        with journal_errors():
            async with self._one_at_a_time:
                return await self._engine.run(work, is_write=True)

    async def read(self, work: Work[Result]) -> Result:
        """Does work that writes nothing."""
        with journal_errors():
            return await self._engine.run(work, is_write=False)


@asynccontextmanager
async def open_database(address: str) -> AsyncIterator[Database]:
    """The database at a path or a "postgresql://" URL, made if it is not there. Raises InvalidJournal."""
    if "://" in address and not address.startswith("sqlite:///"):
        engine: _Sqlite | _Postgresql = _Postgresql(address)
        where = "the database"
    else:
        path = Path(os.path.expanduser(address.removeprefix("sqlite:///")))  # noqa: ASYNC240 - once, at the start
        engine, where = _Sqlite(path), str(path)
    try:
        await _prepare(engine, where)
        yield Database(engine)
    finally:
        await engine.close()


def now_ms(connection: sa.Connection) -> int:
    """The time by which leases are held: the database's own, since clocks of machines differ."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1_000_000
    clock = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
    return int(connection.execute(clock).scalar_one())


@contextmanager
def journal_errors() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        cause = without_passwords(str(getattr(error, "orig", None) or error).partition("\n")[0])
        raise JournalUnavailable(f"the journal cannot be used: {_explain(error, cause)}", cause) from error


def _explain(error: Exception, cause: str) -> str:
    """What callers receive; the rest, such as names of hosts, is for the log."""
    if "is full" in cause or "No space left" in cause:
        return "its disk is full"
    if "locked" in cause:
        return "another program has locked it"
    if "disk I/O" in cause:
        return "its disk does not take it"
    if isinstance(error, FileNotFoundError):
        return f"{cause}; stop this gateway, put the file back and start it again"
    if "malformed" in cause or "not a database" in cause:
        return DAMAGED
    if isinstance(error, OSError) or getattr(error, "connection_invalidated", False):
        return "its database does not answer"
    return "see the gateway's log"


class _Sqlite:
    """Holds the file for this process until `close`. Raises InvalidJournal."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)
        self._engine = sa.create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY_TIMEOUT_S},
            # Errors would otherwise take a run's prompt into the log.
            hide_parameters=True,
        )
        sa.event.listen(self._engine, "connect", _set_up)
        sa.event.listen(self._engine, "commit", lambda _connection: self._file.check())
        self.url = self._engine.url
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal-writer")
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="journal-reader")

    async def run(self, work: Work[Result], *, is_write: bool) -> Result:
        def transact() -> Result:
            with self._engine.begin() if is_write else self._engine.connect() as connection:
                return work(connection)

        threads = self._writer if is_write else self._readers
        return await asyncio.get_running_loop().run_in_executor(threads, transact)

    async def close(self) -> None:
        """Waits for what is under way."""
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()
        self._file.close()

    def check_file(self) -> None:
        self._file.check()

    def find_damage(self) -> str:
        # A connection of its own: the others have pages in memory that they do not read again.
        try:
            with closing(
                sqlite3.connect(f"{self._file.path.absolute().as_uri()}?mode=ro", uri=True)
            ) as fresh:
                # An emptied file is a whole database, without tables.
                fresh.execute("SELECT value FROM about").fetchone()
                found = fresh.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            # Another program that holds it for long is no damage.
            return (
                "" if isinstance(error, sqlite3.OperationalError) and "locked" in str(error) else str(error)
            )
        return "" if found == "ok" else str(found).replace("\n", " ")[:200]


class _Postgresql:
    def __init__(self, address: str) -> None:
        self._engine = _postgresql_engine(address)
        self.url = self._engine.url

    async def run(self, work: Work[Result], *, is_write: bool) -> Result:
        async with self._engine.begin() if is_write else self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        await self._engine.dispose()

    def check_file(self) -> None:
        """There is none."""

    def find_damage(self) -> str:
        """The database looks after that."""
        return ""


def _postgresql_engine(address: str) -> AsyncEngine:
    try:
        url = make_url(address).set(drivername="postgresql+asyncpg")
    except ArgumentError:
        url = None
    if url is None or not address.startswith(("postgresql://", "postgres://")):
        scheme = address.partition(":")[0]
        raise InvalidJournal(
            f"a journal is a path or postgresql://USER:PASSWORD@HOST/DATABASE, got one of {scheme[:40]!r}"
        )
    try:
        return create_async_engine(
            url,
            pool_size=8,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"server_settings": _POSTGRESQL_SETTINGS},
        )
    except ImportError:
        raise InvalidJournal(missing_library("asyncpg", "a journal in PostgreSQL")) from None


def _set_up(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # Written through to the disk at every commit: what a caller has received is there after a power cut, too.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


async def _prepare(engine: _Sqlite | _Postgresql, where: str) -> None:
    """Makes the tables, or brings them up to date."""
    try:
        await engine.run(lambda connection: prepare(connection, where), is_write=True)
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise InvalidJournal(
            f"the journal in {where} cannot be used: {without_passwords(str(cause))}; mend that, or name another one with --journal"
        ) from None
