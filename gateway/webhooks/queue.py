"""Webhooks that wait to be sent, in the journal: one for each run that asked for it and has ended.

A gateway claims one for a minute before it sends it. If it dies in between, another one sends it, or the same one after its
start. So each is sent at least once, always with the same id.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from gateway.journal.database import Database, now_ms
from gateway.journal.schema import runs, webhooks
from triptych.v1.pipeline_pb2 import Run, RunState

# A delivery takes at most half of it.
CLAIM_MS = 60_000
MAX_AT_ONCE = 16


@dataclass(frozen=True)
class DueWebhook:
    """`num_attempts` made so far for this end of the run."""

    run: Run
    url: str
    end_time_ns: int
    request_id: str
    num_attempts: int

    @property
    def id(self) -> str:
        """The same for every attempt, so that receivers recognize repetitions."""
        return "msg_" + hashlib.sha256(f"{self.run.name} {self.end_time_ns}".encode()).hexdigest()[:24]

    def content(self) -> dict[str, Any]:
        """What is sent. Prompts and images are not: the receiver asks for the run with its own token."""
        return {
            "type": "run.finished",
            "timestamp": _iso(self.end_time_ns),
            "data": {
                "run": self.run.name,
                "request_id": self.request_id,
                "state": RunState.Name(self.run.state).removeprefix("RUN_STATE_"),
                "create_time": _iso(self.run.create_time.ToNanoseconds()),
                "end_time": _iso(self.end_time_ns),
                "images": [image.name for image in self.run.images],
            },
        }


class WebhookQueue:
    """Raises JournalUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self) -> Sequence[DueWebhook]:
        """Webhooks that are due now; nobody else gets them for a while."""

        def take(connection: sa.Connection) -> list[DueWebhook]:
            now = now_ms(connection)
            due = _due(now)
            if self._database.is_shared:
                due = due.with_for_update(of=webhooks, skip_locked=True)
            found = connection.execute(due).all()
            if found:
                names = [row.run for row in found]
                claimed = sa.update(webhooks).where(webhooks.c.run.in_(names))
                connection.execute(claimed.values(next_ms=now + CLAIM_MS))
            return [
                DueWebhook(
                    Run.FromString(row.at_rest),
                    row.url,
                    row.end_time_ns,
                    row.request_id or "",
                    row.num_attempts,
                )
                for row in found
            ]

        # Mostly there are none, and then nothing is locked.
        if not await self._database.read(
            lambda connection: connection.execute(_due(now_ms(connection))).first()
        ):
            return []
        return await self._database.write(take)

    async def finish(self, webhook: DueWebhook) -> None:
        """It was sent, or is given up; another end of the run is another webhook."""
        values = {"sent_end_ns": webhook.end_time_ns, "num_attempts": 0, "next_ms": 0}
        await self._change(webhook, values)

    async def postpone(self, webhook: DueWebhook, delay_s: float) -> None:
        """There is another attempt after the delay."""

        def postpone(connection: sa.Connection) -> None:
            next_ms = now_ms(connection) + int(delay_s * 1e3)
            changed = sa.update(webhooks).where(webhooks.c.run == webhook.run.name)
            connection.execute(changed.values(num_attempts=webhook.num_attempts + 1, next_ms=next_ms))

        await self._database.write(postpone)

    async def _change(self, webhook: DueWebhook, values: dict[str, Any]) -> None:
        changed = sa.update(webhooks).where(webhooks.c.run == webhook.run.name).values(values)
        await self._database.write(lambda connection: connection.execute(changed))


def _due(now: int) -> sa.Select[Any]:
    """A run that goes on after its end ends again, at another time."""
    return (
        sa.select(webhooks, runs.c.end_time_ns, runs.c.at_rest, runs.c.request_id)
        .join(runs, runs.c.name == webhooks.c.run)
        .where(
            runs.c.state >= RunState.RUN_STATE_SUCCEEDED,
            runs.c.at_rest.is_not(None),
            webhooks.c.sent_end_ns.is_distinct_from(runs.c.end_time_ns),
            webhooks.c.next_ms <= now,
        )
        .order_by(webhooks.c.next_ms)
        .limit(MAX_AT_ONCE)
    )


def _iso(time_ns: int) -> str:
    return (
        datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
