"""The journal: every run and every event of it, committed before a client sees it.

One task writes the new events of all runs, as many at a time as have gathered, in one transaction; so a busy gateway
pays for a few transactions a second and not for one an event. What cannot be written now is tried again until it can.
It knows rows and messages, and not what a run does.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from gateway.events.event_log import EventLog
from gateway.events.run_state import RunState, attachments_in_event, is_finished, is_idle, without_data
from gateway.journal.database import Database, JournalUnavailable, open_database
from gateway.journal.journal_file import InvalidJournal
from gateway.journal.reader import SELECT_RUN, JournalReader, RunRow
from gateway.journal.schema import about, commands, events, expired, images, runs, webhooks
from services.serving.tracing import spans
from triptych.v1.pipeline_pb2 import Event, Image, RunState as ProtoRunState

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Events that nobody waits for, such as progress, may wait so long for others to be written with.
LINGER_S = 0.02
_MAY_LINGER = {"progress", "preview", "queued", "timing", "stage_started"}
_CHANGES_STATE = {"state", "selected", "finished"}
# What follows from an event at once, such as the end of a run from its last picture, is written with it: so many turns
# of the event loop are waited for that.
GATHER_TURNS = 24
MAX_EVENTS_AT_ONCE = 2_000
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 5.0
# Callers that wait for the journal get an error so long after the last successful write.
PATIENCE_S = 10.0


class Journaled(Protocol):
    """A run whose events are written down."""

    name: str
    log: EventLog
    run: RunState
    # The W3C trace context of the work on it; "" where there is none.
    traceparent: str


@dataclass(frozen=True)
class _Entry:
    """An event to be written, and the new row of its run."""

    run: Journaled
    event: Event
    payload: bytes
    state: dict[str, Any] | None


@dataclass(frozen=True)
class NewRun:
    """What a run is accepted with. `asked` is a digest of what the caller asked for with the request_id."""

    caller: str
    request_id: str
    asked: bytes
    is_detached: bool
    deadline_ns: int | None
    webhook_url: str = ""
    traceparent: str = ""
    queue_order: int | None = None
    in_turn: bool = False


@asynccontextmanager
async def open_journal(address: str, gateway: str) -> AsyncIterator["Journal"]:
    """The journal at a path or a "postgresql://" URL, as the gateway of that name writes it. Raises InvalidJournal."""
    async with open_database(address) as database:
        journal = Journal(database, gateway)
        writing = asyncio.create_task(journal.write_forever(), name="journal")
        try:
            yield journal
        finally:
            await journal.close()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


class Journal:
    """Writes runs and events; `reader` reads them. Use `open_journal`."""

    def __init__(self, database: Database, gateway: str) -> None:
        self.database = database
        self.gateway = gateway
        self.reader = JournalReader(database)
        # Made once: to make a statement costs about as much as to execute it.
        self._add = {
            table: database.insert(table).on_conflict_do_nothing()
            for table in (runs, events, images, expired, webhooks)
        }
        self._waiting: list[_Entry] = []
        self._has_work = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._problem = ""
        self._id = ""

    def write(self, run: Journaled, event: Event) -> None:
        """Has the event written down soon; its log then publishes it."""
        kind = event.WhichOneof("kind")
        payload = b"" if kind == "preview" else event.SerializeToString()
        # As it stands now: by the time it is written the run may have gone on to what is written later.
        state = None
        if kind in _CHANGES_STATE:
            state = {**state_columns(run.run), "traceparent": run.traceparent or None}
        self._waiting.append(_Entry(run, event, payload, state))
        self._has_work.set()
        is_beginning = kind == "state" and event.state.state == ProtoRunState.RUN_STATE_RUNNING
        if not (kind in _MAY_LINGER or is_beginning) or len(self._waiting) >= MAX_EVENTS_AT_ONCE:
            self._is_urgent.set()

    async def flush(self, run: Journaled) -> None:
        """Returns when all events of the run so far are written down; raises JournalUnavailable where that takes too long."""
        if run.log.is_flushed:
            return
        self._is_urgent.set()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await run.log.flushed()
        except TimeoutError:
            raise JournalUnavailable(self._problem or "the journal is written too slowly") from None

    @property
    def is_behind(self) -> bool:
        """Whether something that happened cannot be written down now."""
        return bool(self._problem)

    async def write_forever(self) -> None:
        while True:
            await self._has_work.wait()
            if not self._is_urgent.is_set():
                try:
                    async with asyncio.timeout(LINGER_S):
                        await self._is_urgent.wait()
                except TimeoutError:
                    pass
            for _ in range(GATHER_TURNS):
                await asyncio.sleep(0)
            await self._write_group()

    async def close(self) -> None:
        """Writes what still waits, if that can be done at once."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._waiting:
                    self._is_urgent.set()
                    await asyncio.sleep(LINGER_S)
        except TimeoutError:
            log.error("%d events are lost: %s", len(self._waiting), self._problem)  # noqa: TRY400 - the message is enough

    async def _write_group(self) -> None:
        group = self._waiting[:MAX_EVENTS_AT_ONCE]
        self._is_urgent.clear()
        delay_s = RETRY_FIRST_S
        lost: set[str] | None = None
        while lost is None:
            try:
                with self._span_of(group):
                    lost = await self._commit(group)
            except Exception as error:
                if not isinstance(error, JournalUnavailable):
                    log.exception("a bug keeps events from being written")
                elif str(error) != self._problem:
                    log.error("%s (%s); trying again until it can be written", error, error.cause)  # noqa: TRY400 - as above
                self._problem = str(error)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MOST_S)
        if self._problem:
            log.info("the journal can be written again")
            self._problem = ""
        del self._waiting[: len(group)]
        if not self._waiting:
            self._has_work.clear()
        for run, sequence in {one.run.name: (one.run, one.event.sequence) for one in group}.values():
            if run.name in lost:
                run.log.disown()
            else:
                run.log.publish(sequence)

    def _span_of(self, group: Sequence["_Entry"]) -> AbstractContextManager[object]:
        """A span of the first run that has a trace, with links to the others; none for progress alone."""
        if not spans.is_on():
            return nullcontext()
        lasting = [one for one in group if one.event.WhichOneof("kind") not in _MAY_LINGER]
        first, *others = dict.fromkeys(one.run.traceparent for one in lasting if one.run.traceparent) or [""]
        if not first:
            return nullcontext()
        attributes: dict[str, str | int] = {
            "db.system.name": self.database.kind,
            "db.operation.batch.size": len(group),
        }
        return spans.span("journal commit", attributes, parent=first, links=others)

    async def _commit(self, group: Sequence["_Entry"]) -> set[str]:
        """Writes events of several runs; returns the names of runs that another gateway has taken over."""

        def write(connection: sa.Connection) -> set[str]:
            lost: set[str] = set()
            if self.database.is_shared:
                names = {one.run.name for one in group}
                owned = sa.select(runs.c.name).where(runs.c.name.in_(names), runs.c.owner == self.gateway)
                lost = names - set(connection.scalars(owned.with_for_update()))
            ours = [one for one in group if one.run.name not in lost]
            rows = [
                {"run": one.run.name, "sequence": one.event.sequence, "payload": one.payload} for one in ours
            ]
            pictures = [
                image_row(one.run.name, one.event.image_ready.image)
                for one in ours
                if one.event.HasField("image_ready")
            ]
            pictures += [
                image_row(one.run.name, mask)
                for one in ours
                for mask in attachments_in_event(one.event, one.run.name)
            ]
            # A commit whose answer was lost is tried again: the rows that are there already are the same.
            for table, new in ((events, rows), (images, pictures)):
                if new:
                    connection.execute(self._add[table], new)
            states = {one.run.name: one.state for one in ours if one.state is not None}
            for name, state in states.items():
                statement = _FINISH if "owner" in state else _CHANGE_STATE
                connection.execute(statement, {"run": name, **state})
            return lost

        return await self.database.write(write)

    async def add_run(
        self, name: str, new: NewRun, first_event: Event, init_images: Mapping[str, Image]
    ) -> RunRow:
        """Accepts a run; gives the one that the request_id has made already, where there is one."""

        def write(connection: sa.Connection) -> RunRow:
            row: dict[str, Any] = {
                "name": name,
                "caller": new.caller,
                "request_id": new.request_id or None,
                "asked": new.asked,
                "create_time_ns": first_event.time.ToNanoseconds(),
                "state": first_event.state.state,
                "is_detached": new.is_detached,
                "deadline_ns": new.deadline_ns,
                "owner": self.gateway,
                "traceparent": new.traceparent or None,
                "queue_order": new.queue_order,
                "in_turn": new.in_turn,
            }
            if not connection.execute(self._add[runs], row).rowcount:
                same = sa.and_(runs.c.caller == new.caller, runs.c.request_id == new.request_id)
                return RunRow(*connection.execute(SELECT_RUN.where(same)).one())
            payload = first_event.SerializeToString()
            first = {"run": name, "sequence": first_event.sequence, "payload": payload}
            connection.execute(self._add[events], first)
            if kept := [*init_images.values(), *attachments_in_event(first_event, name)]:
                connection.execute(self._add[images], [image_row(name, image) for image in kept])
            if new.webhook_url:
                webhook = {"run": name, "url": new.webhook_url, "num_attempts": 0, "next_ms": 0}
                connection.execute(self._add[webhooks], webhook)
            return RunRow(
                name,
                new.caller,
                new.asked,
                row["create_time_ns"],
                row["state"],
                new.is_detached,
                new.deadline_ns,
                self.gateway,
                None,
                new.traceparent or None,
                new.queue_order,
                new.in_turn,
            )

        with spans.span("journal add run", {"db.system.name": self.database.kind}):
            return await self.database.write(write)

    async def id(self) -> str:
        """The identity of this journal, which a backup of it has, too; made at the first call."""

        def read(connection: sa.Connection) -> str:
            known = connection.execute(_ID).scalar_one_or_none()
            if known is None:
                row = {"key": "id", "value": secrets.token_hex(16)}
                # Of two gateways that start at once, the first one's counts.
                connection.execute(self.database.insert(about).on_conflict_do_nothing(), row)
                known = connection.execute(_ID).scalar_one()
            return str(known)

        self._id = self._id or await self.database.write(read)
        return self._id

    async def check_id(self) -> None:
        """Raises InvalidJournal if the database at the address is another one by now."""
        try:
            found = await self.database.read(lambda connection: connection.execute(_ID).scalar_one_or_none())
        except JournalUnavailable as error:
            if "does not exist" in error.cause:
                raise InvalidJournal("the journal's tables are gone from its database") from None
            raise
        if self._id and found != self._id:
            raise InvalidJournal("the journal's database was replaced by another one")

    async def has_runs(self) -> bool:
        query = sa.select(runs.c.name).limit(1)
        return await self.database.read(lambda connection: connection.execute(query).first()) is not None

    async def move_run(self, name: str, orders: Mapping[str, int], *, in_turn: bool) -> None:
        """Writes the order of waiting runs of this gateway, by name, and whether the run `name` waits in turn."""

        def move(connection: sa.Connection) -> None:
            for run, order in orders.items():
                mine = runs.c.name == run, runs.c.owner == self.gateway
                connection.execute(sa.update(runs).where(*mine).values(queue_order=order))
            connection.execute(sa.update(runs).where(runs.c.name == name).values(in_turn=in_turn))

        await self.database.write(move)

    async def detach(self, name: str) -> None:
        """The run continues without a connected client."""
        detached = sa.update(runs).where(runs.c.name == name).values(is_detached=True)
        await self.database.write(lambda connection: connection.execute(detached))

    async def delete_run(self, name: str, *, expired_at: float | None = None) -> list[str] | None:
        """Forgets a finished run; returns the hashes of pictures that no other run has, None where it goes on again.

        Of one that `expired_at` a time, in seconds since 1970, it is remembered that it was there.
        """

        def delete(connection: sa.Connection) -> list[str] | None:
            finished = (
                sa.delete(runs)
                .where(
                    runs.c.name == name,
                    runs.c.state >= ProtoRunState.RUN_STATE_SUCCEEDED,
                    runs.c.owner.is_(None),
                )
                .returning(runs.c.caller)
            )
            caller = (connection.execute(finished)).scalar_one_or_none()
            if caller is None:
                return None
            if expired_at is not None:
                row = {"run": name, "caller": caller, "expired_ms": int(expired_at * 1e3)}
                connection.execute(self._add[expired], row)
            mine = sa.select(images.c.sha256).where(images.c.run == name).distinct()
            hashes = set(connection.scalars(mine))
            for table in (events, images, commands, webhooks):
                connection.execute(sa.delete(table).where(table.c.run == name))
            wanted = set(connection.scalars(sa.select(images.c.sha256).where(images.c.sha256.in_(hashes))))
            return sorted(hashes - wanted)

        return await self.database.write(delete)

    async def forget_expired(self, before: float) -> None:
        """Remembers nothing of runs that expired before that time."""
        old = sa.delete(expired).where(expired.c.expired_ms < int(before * 1e3))
        await self.database.write(lambda connection: connection.execute(old))


_ID = sa.select(about.c.value).where(about.c.key == "id")
_CHANGE_STATE = (
    sa.update(runs)
    .where(runs.c.name == sa.bindparam("run"))
    .values({name: sa.bindparam(name) for name in ("state", "end_time_ns", "at_rest", "traceparent")})
)
_FINISH = _CHANGE_STATE.values(owner=sa.bindparam("owner"))


def image_row(run: str, image: Image) -> dict[str, Any]:
    payload = without_data(image).SerializeToString()
    return {"name": image.name, "run": run, "sha256": image.sha256, "payload": payload}


def state_columns(run: RunState) -> dict[str, Any]:
    """The columns of `runs` that follow from the run as it stands; a finished one is nobody's."""
    values: dict[str, Any] = {"state": run.state, "end_time_ns": None, "at_rest": None}
    if is_idle(run.state):
        message = run.to_proto()
        values["at_rest"] = message.SerializeToString()
        if is_finished(run.state):
            values |= {"end_time_ns": message.end_time.ToNanoseconds(), "owner": None}
    return values
