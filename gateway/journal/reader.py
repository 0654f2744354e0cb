"""Reads the journal: runs, their events and their images, from rows.

It knows rows and messages; how they come to be written is in journal.py.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway.events.run_state import RunState
from gateway.journal.database import Database
from gateway.journal.schema import events, expired, images, runs
from triptych.v1.pipeline_pb2 import Event, Image, Run, RunState as ProtoRunState

EVENTS_PER_READ = 1_000


@dataclass(frozen=True)
class RunRow:
    """The row of a run, beside its events."""

    name: str
    caller: str
    asked: bytes
    create_time_ns: int
    state: ProtoRunState.ValueType
    is_detached: bool
    deadline_ns: int | None
    owner: str | None
    at_rest: bytes | None
    traceparent: str | None
    queue_order: int | None
    in_turn: bool | None

    @property
    def place(self) -> int:
        """Its order among its caller's runs that wait to begin."""
        return self.create_time_ns if self.queue_order is None else self.queue_order


class JournalReader:
    """All methods raise JournalUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_run(self, name: str) -> RunRow | None:
        return await self._find(runs.c.name == name)

    async def find_request(self, caller: str, request_id: str) -> RunRow | None:
        """The run that a caller has made with this request_id."""
        return await self._find(sa.and_(runs.c.caller == caller, runs.c.request_id == request_id))

    async def list_runs(
        self,
        caller: str | None,
        before: tuple[int, str] | None,
        limit: int,
        states: Collection[ProtoRunState.ValueType] = (),
    ) -> list[RunRow]:
        """Runs of a caller, or of all (None), newest first, from after that creation time and name on.

        `states`: only runs in one of them; none: all.
        """
        query = SELECT_RUN.order_by(runs.c.create_time_ns.desc(), runs.c.name.desc()).limit(limit)
        if caller is not None:
            query = query.where(runs.c.caller == caller)
        if states:
            query = query.where(runs.c.state.in_(states))
        if before is not None:
            query = query.where(sa.tuple_(runs.c.create_time_ns, runs.c.name) < sa.tuple_(*before))
        return [RunRow(*row) for row in await self.rows(query)]

    async def view(self, row: RunRow) -> Run:
        """The run as it stands."""
        if row.at_rest is not None:
            return Run.FromString(row.at_rest)
        return RunState(await self.read_log(row.name)).to_proto()

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
            for sequence, payload in await self.rows(query)
        ]

    async def init_images(self, name: str) -> dict[str, Image]:
        """The pictures that a run starts from, in order."""
        found = [
            image for image in await self.images_of(name) if image.name.startswith(f"{name}/images/init-")
        ]
        return {image.name: image for image in sorted(found, key=lambda image: image.index)}

    async def images_of(self, name: str) -> list[Image]:
        query = sa.select(images.c.payload).where(images.c.run == name)
        return [Image.FromString(payload) for (payload,) in await self.rows(query)]

    async def find_image(self, name: str) -> Image | None:
        """A picture of a run, without its file."""
        rows = await self.rows(sa.select(images.c.payload).where(images.c.name == name))
        return Image.FromString(rows[0][0]) if rows else None

    async def find_file(self, sha256: str, caller: str | None) -> Image | None:
        """Any picture with that file in a run of the caller, or of anybody (None)."""
        query = sa.select(images.c.payload).where(images.c.sha256 == sha256).limit(1)
        if caller is not None:
            query = query.join(runs, runs.c.name == images.c.run).where(runs.c.caller == caller)
        rows = await self.rows(query)
        return Image.FromString(rows[0][0]) if rows else None

    async def finished_before(self, end_time_ns: int, limit: int) -> list[str]:
        """Names of the runs that ended before that time, the oldest first."""
        query = (
            sa.select(runs.c.name)
            .where(runs.c.end_time_ns < end_time_ns)
            .order_by(runs.c.end_time_ns)
            .limit(limit)
        )
        return [name for (name,) in await self.rows(query)]

    async def find_expired(self, name: str) -> tuple[str, float] | None:
        """The caller of a run that expired, and when that was, in seconds since 1970."""
        query = sa.select(expired.c.caller, expired.c.expired_ms).where(expired.c.run == name)
        rows = await self.rows(query)
        return (rows[0].caller, rows[0].expired_ms / 1e3) if rows else None

    async def wanted(self, hashes: Sequence[str]) -> set[str]:
        """Those of the files that a run has."""
        query = sa.select(images.c.sha256).where(images.c.sha256.in_(hashes)).distinct()
        return {sha256 for (sha256,) in await self.rows(query)}

    async def _find(self, where: sa.ColumnElement[bool]) -> RunRow | None:
        rows = await self.rows(SELECT_RUN.where(where))
        return RunRow(*rows[0]) if rows else None

    async def rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        """What any query selects."""
        return await self._database.read(lambda connection: connection.execute(query).all())


SELECT_RUN: sa.Select[Any] = sa.select(
    runs.c.name,
    runs.c.caller,
    runs.c.asked,
    runs.c.create_time_ns,
    runs.c.state,
    runs.c.is_detached,
    runs.c.deadline_ns,
    runs.c.owner,
    runs.c.at_rest,
    runs.c.traceparent,
    runs.c.queue_order,
    runs.c.in_turn,
)
