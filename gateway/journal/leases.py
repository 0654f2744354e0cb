"""Leases of runs between gateways that share a journal, and their commands to each other.

A gateway holds its runs for as long as it renews its lease; when that ends, another one takes them over. What is asked
of a gateway about a run of another one is left in a table for that one, which answers there.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import sqlalchemy as sa

from gateway.journal.database import Database, now_ms
from gateway.journal.schema import attendances, commands, gateways, runs
from services.errors import InvalidRequest, TriptychError
from triptych.v1.pipeline_pb2 import RunState

# A gateway that has been silent for so long is taken for dead; every write asks whether it still owns the run.
LEASE_S = 10.0
# A client of another gateway that follows a run counts for so long.
ATTENDANCE_S = 10.0

_OPEN = (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING)


@dataclass(frozen=True)
class PeerCommand:
    """What a caller asked another gateway: "cancel", "move" or "select", with the request's message.

    `max_images` is what the caller may have of one run, which only the gateway that it asked knows.
    """

    id: int
    run: str
    kind: str
    payload: bytes
    max_images: int | None = None


class Leases:
    """The runs of the gateway `gateway`, as the journal has them. All methods raise JournalUnavailable."""

    def __init__(self, database: Database, gateway: str) -> None:
        self._database = database
        self._me = gateway

    async def heartbeat(self) -> None:
        """Renews this gateway's lease."""

        def renew(connection: sa.Connection) -> None:
            until_ms = now_ms(connection) + int(LEASE_S * 1e3)
            renewed = sa.update(gateways).where(gateways.c.id == self._me).values(until_ms=until_ms)
            if not connection.execute(renewed).rowcount:
                connection.execute(sa.insert(gateways).values(id=self._me, until_ms=until_ms))

        await self._database.write(renew)

    async def claim(self, name: str) -> bool:
        """Takes a run that no living gateway has; whether it is this one's now."""
        return bool(await self._claim(runs.c.name == name, runs.c.owner == self._me))

    async def claim_open(self) -> list[str]:
        """Takes all runs with something left to do that no living gateway has; returns their names, in the order in
        which they begin: what has begun before, then as they waited."""
        return await self._claim(runs.c.state.in_(_OPEN), sa.false())

    async def release(self, names: Collection[str]) -> None:
        """Leaves runs to whichever gateway takes them next."""
        mine = runs.c.name.in_(names), runs.c.owner == self._me
        await self._execute(sa.update(runs).where(*mine).values(owner=None))

    async def release_all(self) -> None:
        """This gateway ends: others need not wait for that of its lease."""

        def release(connection: sa.Connection) -> None:
            connection.execute(sa.update(runs).where(runs.c.owner == self._me).values(owner=None))
            connection.execute(sa.delete(gateways).where(gateways.c.id == self._me))
            # A client that followed a run of another gateway here has as long as ever to come back elsewhere.
            until_ms = now_ms(connection) + int(ATTENDANCE_S * 1e3)
            mine = attendances.c.gateway == self._me
            connection.execute(sa.update(attendances).where(mine).values(until_ms=until_ms))

        await self._database.write(release)

    async def send_command(
        self, run: str, kind: str, payload: bytes, *, max_images: int | None = None
    ) -> int:
        """Leaves a command for the gateway that carries out the run; returns its number."""
        if max_images is not None:
            kind = f"{kind}/{max_images}"

        def insert(connection: sa.Connection) -> int:
            row = {"run": run, "kind": kind, "payload": payload, "asked_ms": now_ms(connection)}
            inserted = sa.insert(commands).values(row).returning(commands.c.id)
            return int(connection.execute(inserted).scalar_one())

        return await self._database.write(insert)

    async def poll_reply(self, command: int) -> str | None:
        """The reply; None while there is none."""
        query = sa.select(commands.c.answer).where(commands.c.id == command)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one_or_none())

    async def cancel_command(self, command: int) -> None:
        """Nobody waits for its reply any more."""
        await self._execute(sa.delete(commands).where(commands.c.id == command))

    async def commands(self) -> Sequence[PeerCommand]:
        """What other gateways ask about this gateway's runs, in order."""
        query = (
            sa.select(commands.c.id, commands.c.run, commands.c.kind, commands.c.payload)
            .join(runs, runs.c.name == commands.c.run)
            .where(commands.c.answer.is_(None), runs.c.owner == self._me)
            .order_by(commands.c.id)
        )
        asked = []
        for number, run, kind, payload in await self._database.read(
            lambda connection: connection.execute(query).all()
        ):
            kind, _, most = kind.partition("/")
            asked.append(PeerCommand(number, run, kind, payload, int(most) if most else None))
        return asked

    async def reply(self, command: int, error: TriptychError | None) -> None:
        text = "" if error is None else write_error(error)
        await self._execute(sa.update(commands).where(commands.c.id == command).values(answer=text))

    async def heartbeat_clients(self, names: Collection[str]) -> None:
        """Records that clients of this gateway follow these runs, which other gateways carry out."""

        def replace(connection: sa.Connection) -> None:
            now = now_ms(connection)
            is_over = attendances.c.until_ms < now
            connection.execute(
                sa.delete(attendances).where(sa.or_(attendances.c.gateway == self._me, is_over))
            )
            if names:
                until_ms = now + int(ATTENDANCE_S * 1e3)
                rows = [{"run": name, "gateway": self._me, "until_ms": until_ms} for name in names]
                connection.execute(sa.insert(attendances), rows)

        await self._database.write(replace)

    async def has_clients(self, name: str) -> bool:
        """Whether clients of another gateway follow the run."""

        def count(connection: sa.Connection) -> int:
            query = sa.select(sa.func.count()).where(
                attendances.c.run == name,
                attendances.c.gateway != self._me,
                attendances.c.until_ms > now_ms(connection),
            )
            return int(connection.execute(query).scalar_one())

        return bool(await self._database.read(count))

    async def _claim(self, which: sa.ColumnElement[bool], or_where: sa.ColumnElement[bool]) -> list[str]:
        def claim(connection: sa.Connection) -> list[str]:
            alive = sa.exists().where(gateways.c.id == runs.c.owner, gateways.c.until_ms > now_ms(connection))
            claimed = (
                sa.update(runs)
                .where(which, sa.or_(runs.c.owner.is_(None), ~alive, or_where))
                .values(owner=self._me)
                .returning(runs.c.name, runs.c.state, runs.c.queue_order, runs.c.create_time_ns)
            )
            return [row.name for row in sorted(connection.execute(claimed), key=_begins)]

        return await self._database.write(claim)

    async def _execute(self, statement: sa.Executable) -> None:
        await self._database.write(lambda connection: connection.execute(statement))


def _begins(row: sa.Row[Any]) -> tuple[bool, int]:
    order = row.create_time_ns if row.queue_order is None else row.queue_order
    return row.state == RunState.RUN_STATE_QUEUED, order


def write_error(error: TriptychError) -> str:
    """An error as another gateway can raise it again."""
    fields: dict[str, Any] = {
        "message": str(error),
        "status": error.status.name,
        "reason": error.reason,
        "retry_after_s": error.retry_after_s,
    }
    if isinstance(error, InvalidRequest):
        fields |= {"field": error.field, "description": error.description}
    return json.dumps(fields)


def read_error(text: str) -> TriptychError:
    fields = json.loads(text)
    error = (
        InvalidRequest(fields["field"], fields["description"])
        if "field" in fields
        else TriptychError(fields["message"])
    )
    error.status = grpc.StatusCode[fields["status"]]
    error.reason = fields["reason"]
    error.retry_after_s = fields["retry_after_s"]
    return error
