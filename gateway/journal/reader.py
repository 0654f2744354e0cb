"""Reads the journal: runs, their events and their images, from rows.

It knows rows and messages; how they come to be written is in journal.py.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.events.run_view import RunView
from gateway.journal.database import SqliteThreads
from gateway.journal.schema import blocking_engine, events, expired, images, runs
from services.errors import TriptychError, without_passwords
from triptych.v1.pipeline_pb2 import Event, Image, Run, RunState

EVENTS_PER_READ = 1_000


class JournalUnavailable(TriptychError):
    """The journal cannot be written or read now. Published events stay valid, and runs continue when it can."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "JOURNAL_FAILED"
    retry_after_s = 5.0

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        # What the database said, for the log.
        self.cause = cause


@dataclass(frozen=True)
class RunRow:
    """The row of a run, beside its events."""

    name: str
    caller: str
    asked: bytes
    create_time_ns: int
    state: RunState.ValueType
    is_detached: bool
    deadline_ns: int | None
    owner: str | None
    at_rest: bytes | None


class ReadableJournal:
    """The half of a Journal that writes nothing. All methods raise JournalFailed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # Whether other gateways may write it, too: then each writes only of the runs that it owns.
        self.is_shared = engine.dialect.name != "sqlite"
        # Where a statement would have a thread of its own to go to, its whole transaction goes there.
        self._threads = None if self.is_shared else SqliteThreads(blocking_engine(engine))

    async def find_run(self, name: str) -> RunRow | None:
        return await self._find(runs.c.name == name)

    async def find_request(self, caller: str, request_id: str) -> RunRow | None:
        """The run that a caller has made with this request_id."""
        return await self._find(sa.and_(runs.c.caller == caller, runs.c.request_id == request_id))

    async def list_runs(self, caller: str | None, before: tuple[int, str] | None, limit: int) -> list[RunRow]:
        """Runs of a caller, or of all (None), newest first, from after that creation time and name on."""
        query = SELECT_RUN.order_by(runs.c.create_time_ns.desc(), runs.c.name.desc()).limit(limit)
        if caller is not None:
            query = query.where(runs.c.caller == caller)
        if before is not None:
            query = query.where(sa.tuple_(runs.c.create_time_ns, runs.c.name) < sa.tuple_(*before))
        return [RunRow(*row) for row in await self._rows(query)]

    async def view(self, row: RunRow) -> Run:
        """The run as it stands."""
        if row.at_rest is not None:
            return Run.FromString(row.at_rest)
        view = RunView(await self.read_log(row.name))
        return view.to_proto()

    async def read_log(self, name: str) -> list[Event]:
        """All events of a run; of previews nothing but their numbers."""
        whole: list[Event] = []
        while part := await self.read_events(name, whole[-1].sequence if whole else 0):
            whole += part
        return whole

    async def read_events(self, name: str, after_sequence: int) -> list[Event]:
        """The next events of a run, a bounded number of them; none where there are none yet."""
        query = (
            sa.select(events.c.sequence, events.c.payload)
            .where(events.c.run == name, events.c.sequence > after_sequence)
            .order_by(events.c.sequence)
            .limit(EVENTS_PER_READ)
        )
        return [
            Event.FromString(payload) if payload else Event(sequence=sequence, preview=Event.ImagePreview())
            for sequence, payload in await self._rows(query)
        ]

    async def init_images(self, name: str) -> dict[str, Image]:
        """The pictures that a run starts from, in order."""
        found = [
            image for image in await self.images_of(name) if image.name.startswith(f"{name}/images/init-")
        ]
        return {image.name: image for image in sorted(found, key=lambda image: image.index)}

    async def images_of(self, name: str) -> list[Image]:
        query = sa.select(images.c.payload).where(images.c.run == name)
        return [Image.FromString(payload) for (payload,) in await self._rows(query)]

    async def find_image(self, name: str) -> Image | None:
        """A picture of a run, without its file."""
        rows = await self._rows(sa.select(images.c.payload).where(images.c.name == name))
        return Image.FromString(rows[0][0]) if rows else None

    async def find_file(self, sha256: str, caller: str | None) -> Image | None:
        """Any picture with that file in a run of the caller, or of anybody (None)."""
        query = sa.select(images.c.payload).where(images.c.sha256 == sha256).limit(1)
        if caller is not None:
            query = query.join(runs, runs.c.name == images.c.run).where(runs.c.caller == caller)
        rows = await self._rows(query)
        return Image.FromString(rows[0][0]) if rows else None

    async def finished_before(self, end_time_ns: int, limit: int) -> list[str]:
        """Names of the runs that ended before that time, the oldest first."""
        query = (
            sa.select(runs.c.name)
            .where(runs.c.end_time_ns < end_time_ns)
            .order_by(runs.c.end_time_ns)
            .limit(limit)
        )
        async with self.reading() as connection:
            return list(await connection.scalars(query))

    async def find_expired(self, name: str) -> tuple[str, float] | None:
        """The caller of a run that expired, and when that was, in seconds since 1970."""
        query = sa.select(expired.c.caller, expired.c.expired_ms).where(expired.c.run == name)
        async with self.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.caller, row.expired_ms / 1e3)

    async def wanted(self, hashes: Sequence[str]) -> set[str]:
        """Those of the files that a run has."""
        query = sa.select(images.c.sha256).where(images.c.sha256.in_(hashes)).distinct()
        async with self.reading() as connection:
            return set(await connection.scalars(query))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        with journal_errors():
            async with self.engine.connect() as connection:
                yield connection

    async def _find(self, where: sa.ColumnElement[bool]) -> RunRow | None:
        rows = await self._rows(SELECT_RUN.where(where))
        return RunRow(*rows[0]) if rows else None

    async def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        def read(connection: sa.Connection) -> Sequence[Any]:
            return connection.execute(query).all()

        if self._threads is not None:
            with journal_errors():
                return await self._threads.read(read)
        async with self.reading() as connection:
            return await connection.run_sync(read)


SELECT_RUN = sa.select(
    runs.c.name,
    runs.c.caller,
    runs.c.asked,
    runs.c.create_time_ns,
    runs.c.state,
    runs.c.is_detached,
    runs.c.deadline_ns,
    runs.c.owner,
    runs.c.at_rest,
)


@contextmanager
def journal_errors() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        cause = without_passwords(str(getattr(error, "orig", None) or error).partition("\n")[0])
        raise JournalUnavailable(f"the journal cannot be used: {_explain(error, cause)}", cause) from error


def _explain(error: Exception, cause: str) -> str:
    """The message for callers; the rest, such as names of hosts, is for the log."""
    if "is full" in cause or "No space left" in cause:
        return "its disk is full"
    if "locked" in cause:
        return "another program has locked it"
    if "disk I/O" in cause:
        return "its disk does not take it"
    if isinstance(error, FileNotFoundError):
        return f"{cause}; stop this gateway, put the file back and start it again"
    if "malformed" in cause or "not a database" in cause:
        return "its file is damaged; stop this gateway and run `triptych journal check`"
    if isinstance(error, OSError) or getattr(error, "connection_invalidated", False):
        return "its database does not answer"
    return "see the gateway's log"
