"""Counts connected clients per run and cancels attached runs after the last one has been away for `--abandon-grace`.

It knows that there is somebody, and not who: a caller that streams, or another gateway's.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from gateway.runs.run import ActiveRun

log = logging.getLogger(__name__)

# A client needs a moment to attach after it created a run, or after a restart.
ARRIVAL_S = 10.0


class AbandonmentMonitor:
    """`find` gives a run that is carried out here; None for any other, and for all of them once the gateway stops."""

    def __init__(
        self,
        find: Callable[[str], ActiveRun | None],
        has_clients_elsewhere: Callable[[str], Awaitable[bool]],
        *,
        grace_s: float,
    ) -> None:
        self._find = find
        self._has_clients_elsewhere = has_clients_elsewhere
        self._grace_s = grace_s
        # Connected clients of each run here, whichever gateway owns it.
        self._num_clients: Counter[str] = Counter()
        self._scheduled: set[asyncio.Task[None]] = set()

    def __contains__(self, name: str) -> bool:
        """Whether a client follows the run here."""
        return name in self._num_clients

    @property
    def names(self) -> list[str]:
        """The runs that clients follow here."""
        return list(self._num_clients)

    def attach(self, name: str) -> None:
        """Attaches a client to the run."""
        self._num_clients[name] += 1

    def detach(self, name: str) -> None:
        """One of them went away; the last one takes the run along, unless it was to go on, or somebody comes back."""
        self._num_clients[name] -= 1
        if not self._num_clients[name]:
            del self._num_clients[name]
            self._schedule(name, self._grace_s)

    def start_grace_period(self, name: str) -> None:
        """The run is carried out from now on: somebody has to come for it."""
        self._schedule(name, max(ARRIVAL_S, self._grace_s))

    def close(self) -> None:
        for task in self._scheduled:
            task.cancel()

    def _schedule(self, name: str, after_s: float) -> None:
        if self._abandoned(name) is not None:
            task = asyncio.create_task(self._cancel_if_abandoned(name, after_s))
            self._scheduled.add(task)
            task.add_done_callback(self._scheduled.discard)

    async def _cancel_if_abandoned(self, name: str, after_s: float) -> None:
        """Cancels the run after the grace unless a client follows it, or it is detached."""
        await asyncio.sleep(after_s)
        while self._abandoned(name) is not None:
            is_elsewhere = await self._has_clients_elsewhere(name)
            # Once more: meanwhile somebody may have come back, or this gateway begun to stop.
            if not is_elsewhere and (live := self._abandoned(name)) is not None:
                log.info("%s is cancelled: no client is connected", name)
                live.cancel()
                return
            await asyncio.sleep(after_s or ARRIVAL_S)

    def _abandoned(self, name: str) -> ActiveRun | None:
        """The run, if it needs somebody and nobody is there."""
        live = self._find(name)
        if live is None or name in self or live.is_detached or live.is_finished:
            return None
        return live
