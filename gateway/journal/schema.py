"""The tables of the journal, and how it is opened: SQLite for one gateway, PostgreSQL for several.

A journal of another version is refused.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.journal.journal_file import InvalidJournal, JournalFile
from services.errors import without_passwords
from triptych._installation import missing_library

# Raised by one whenever the format changes: a journal of another version cannot be read.
VERSION = 1
# Somebody who looks into the file with another program holds it up no longer than this.
BUSY_TIMEOUT_S = 5.0

# A gateway that was stopped, or unplugged, in the middle of a transaction must not keep its rows locked: others are to
# take over its runs.
_POSTGRESQL_SETTINGS = {
    "idle_in_transaction_session_timeout": "5s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

metadata = sa.MetaData()

about = sa.Table(
    "about",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# Who carries out runs, and until when that can be relied on, in milliseconds of the database's clock.
gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, nullable=False),
    # NULL where the caller gave none; `asked` is a digest of what it asked for.
    sa.Column("request_id", sa.Text),
    sa.Column("asked", sa.LargeBinary, nullable=False),
    sa.Column("create_time_ns", sa.BigInteger, nullable=False),
    sa.Column("end_time_ns", sa.BigInteger),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("is_detached", sa.Boolean, nullable=False),
    sa.Column("deadline_ns", sa.BigInteger),
    # The gateway that carries it out; NULL while nobody does.
    sa.Column("owner", sa.Text),
    # The Run message of one that is at rest, so that a list of runs need not read their events.
    sa.Column("at_rest", sa.LargeBinary),
    sa.UniqueConstraint("caller", "request_id", name="one_run_for_a_request"),
    sa.Index("runs_of_a_caller", "caller", "create_time_ns"),
    sa.Index("runs_by_time", "create_time_ns", "name"),
    sa.Index("runs_by_state", "state"),
)

# The payload is a serialized Event; that of a preview is empty.
events = sa.Table(
    "events",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

# Every picture that a run has, those that it started from and masks included; the payload is a serialized Image.
images = sa.Table(
    "images",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Index("images_of_a_run", "run"),
    sa.Index("images_by_hash", "sha256"),
)

# Runs that expired, for a while: requests for one get EVENTS_EXPIRED.
expired = sa.Table(
    "expired",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("expired_ms", sa.BigInteger, nullable=False),
    sa.Index("expired_by_time", "expired_ms"),
)

# What was asked of a gateway about a run that another one carries out; that one answers here.
commands = sa.Table(
    "commands",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("asked_ms", sa.BigInteger, nullable=False),
    sa.Column("answer", sa.Text),
    sa.Index("commands_of_a_run", "run"),
)

# Runs that clients follow at another gateway than the owner.
attendances = sa.Table(
    "attendances",
    metadata,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("gateway", sa.Text, primary_key=True),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
)


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[AsyncEngine]:
    """The journal at a path or a "postgresql://" URL, made if it is not there. Raises BadJournal."""
    if "://" in address and not address.startswith("sqlite:///"):
        engine = _postgresql(address)
        try:
            await _prepare(engine, "the database")
            yield engine
        finally:
            await engine.dispose()
        return
    path = Path(os.path.expanduser(address.removeprefix("sqlite:///")))  # noqa: ASYNC240 - once, at the start
    file = JournalFile(path)
    engine = _sqlite(path)
    _files[str(engine.url.database)] = file
    try:
        sa.event.listen(engine.sync_engine, "commit", lambda _connection: file.check())
        await _prepare(engine, str(path))
        yield engine
    finally:
        await engine.dispose()
        _files.pop(str(engine.url.database), None)
        file.close()


def check_file(engine: AsyncEngine) -> None:
    """Raises FileNotFoundError when the file of a journal in SQLite is gone or was replaced."""
    if (file := _files.get(str(engine.url.database))) is not None:
        file.check()


# The files that this process holds, by the path of their engines.
_files: dict[str, JournalFile] = {}


async def now_ms(connection: AsyncConnection) -> int:
    """The time by which leases are held: the database's own, since clocks of machines differ."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1_000_000
    clock = sa.text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
    return int((await connection.execute(clock)).scalar_one())


def _postgresql(address: str) -> AsyncEngine:
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


def _sqlite(path: Path) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        pool_size=4,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        # Errors would otherwise take a run's prompt into the log.
        hide_parameters=True,
    )

    sa.event.listen(engine.sync_engine, "connect", _set_up)
    return engine


def blocking_engine(engine: AsyncEngine) -> sa.Engine:
    """The same SQLite file, for threads."""
    blocking = sa.create_engine(
        f"sqlite:///{engine.url.database}", connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True
    )
    sa.event.listen(blocking, "connect", _set_up)
    if (file := _files.get(str(engine.url.database))) is not None:
        sa.event.listen(blocking, "commit", lambda _connection: file.check())
    return blocking


def _set_up(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # Written through to the disk at every commit: published events survive a power cut.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


async def _prepare(engine: AsyncEngine, where: str) -> None:
    """Makes the tables, or finds those of this version."""
    try:
        async with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Of two gateways that start at the same time one makes the tables.
                await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7374726970747963)"))
            names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
            if about.name not in names and {runs.name, events.name} & set(names):
                raise InvalidJournal(
                    f"{where} has tables of another program; name another one with --journal"
                )
            await connection.run_sync(metadata.create_all)
            query = sa.select(about.c.value).where(about.c.key == "version")
            found = (await connection.execute(query)).scalar_one_or_none()
            if found is None:
                await connection.execute(sa.insert(about).values(key="version", value=str(VERSION)))
    except (SQLAlchemyError, OSError) as error:
        cause = getattr(error, "orig", None) or error
        raise InvalidJournal(
            f"the journal in {where} cannot be used: {without_passwords(str(cause))}; mend that, or name another one with --journal"
        ) from None
    if found not in (None, str(VERSION)):
        raise InvalidJournal(
            f"the journal in {where} is of version {found}, and this gateway writes version {VERSION}; use the "
            "gateway that wrote it, or name another journal with --journal"
        )
