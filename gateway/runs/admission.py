"""Admission of runs: a concurrency limit and a bounded queue, fair between callers.

It knows callers and turns, and nothing of what a run does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from gateway.access.caller import CallerLimits
from services.errors import QueueFull, RateLimited
from services.queues import FairQueue, QueueRate

# Before anything was measured.
RETRY_AFTER_S = 5.0
# Positions are reported no more often: a queue of hundreds moves with every run that ends.
TELL_EVERY_S = 2.0

OnPosition = Callable[[int, float | None], None]


@dataclass(frozen=True)
class AdmissionLimits:
    """How many runs there are at once, of all callers and of each; a caller's own limits come before."""

    max_running: int = 64
    max_queued: int = 256
    max_running_per_caller: int | None = None
    # One caller alone cannot fill the queue.
    max_queued_per_caller: int | None = 64


class Admission:
    def __init__(self, room: AdmissionLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._room = room
        self._clock = clock
        self._limits: dict[str, CallerLimits] = {}
        self._running: Counter[str] = Counter()
        self._waiting: FairQueue[AdmissionTicket] = FairQueue()
        self._num_waiting: Counter[str] = Counter()
        self._pace = QueueRate()
        # When the last one began; None where nobody has had to wait since.
        self._began_at: float | None = None
        self._telling: asyncio.TimerHandle | None = None

    def enter(
        self,
        caller: str,
        limits: CallerLimits | None = None,
        *,
        was_accepted: bool = False,
    ) -> "AdmissionTicket":
        """Takes a place for a run. Raises QueueFull or RateLimited, but for one that `was_accepted` before."""
        if not was_accepted:
            self.check(caller, limits)
        turn = AdmissionTicket(self, caller)
        self._waiting.push(turn, caller)
        self._num_waiting[caller] += 1
        self._begin_next()
        if turn.is_waiting:
            position = next(place for place, one in enumerate(self._waiting, 1) if one is turn)
            turn.move(position, self._pace.wait_s(position))
        return turn

    @property
    def num_running(self) -> int:
        return self._running.total()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

    def leave(self, turn: "AdmissionTicket") -> None:
        if turn.is_waiting:
            self._waiting.remove(lambda one: one is turn)
            self._forget(self._num_waiting, turn.caller)
            self._tell_soon()
        else:
            self._forget(self._running, turn.caller)
            self._begin_next()

    def check(self, caller: str, limits: CallerLimits | None = None) -> None:
        """Raises what `enter` would raise now."""
        if limits is not None:
            self._limits[caller] = limits
        if self._may_begin(caller) and not self._num_waiting[caller]:
            return
        most = self._limit(caller).max_queued_runs
        if most is None:
            most = self._room.max_queued_per_caller
        if most is not None and self._num_waiting[caller] >= most:
            raise RateLimited(
                f"you have {self._running[caller]} runs under way and {self._num_waiting[caller]} that wait, at most "
                f"{most} can; try again later",
                retry_after_s=self._retry_after_s(),
            )
        if len(self._waiting) >= self._room.max_queued:
            raise QueueFull(
                f"{self.num_running} runs are under way and {len(self._waiting)} wait; try again later",
                retry_after_s=self._retry_after_s(),
            )

    def _retry_after_s(self) -> float:
        wait_s = self._pace.wait_s(1)
        return RETRY_AFTER_S if wait_s is None else max(1.0, wait_s)

    def _limit(self, caller: str) -> CallerLimits:
        return self._limits.get(caller, CallerLimits())

    def _may_begin(self, caller: str) -> bool:
        most = self._limit(caller).max_running_runs
        if most is None:
            most = self._room.max_running_per_caller
        if most is not None and self._running[caller] >= most:
            return False
        return self.num_running < self._room.max_running

    def _begin_next(self) -> None:
        while (turn := self._waiting.pop_for(self._may_begin)) is not None:
            self._begin(turn)
        self._tell_soon()

    def _begin(self, turn: "AdmissionTicket") -> None:
        if turn.has_waited:
            now = self._clock()
            if self._began_at is not None:
                self._pace.moved(1, now - self._began_at)
            self._began_at = now
        self._forget(self._num_waiting, turn.caller)
        self._running[turn.caller] += 1
        turn.begin()
        if not self._waiting:
            # What comes next did not wait for this one to make room.
            self._began_at = None

    def _tell_soon(self) -> None:
        if self._telling is None and self._waiting:
            self._telling = asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        for position, turn in enumerate(self._waiting, 1):
            turn.move(position, self._pace.wait_s(position))

    @staticmethod
    def _forget(counter: Counter[str], caller: str) -> None:
        counter[caller] -= 1
        if not counter[caller]:
            del counter[caller]


class AdmissionTicket:
    """A run's place: it waits, then runs, until it leaves."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self.caller = caller
        self._admission = admission
        self._on_move: OnPosition | None = None
        self._position = 0
        self._wait_s: float | None = None
        self._has_left = False
        self._begun = asyncio.Event()

    @property
    def is_waiting(self) -> bool:
        return not self._begun.is_set()

    @property
    def has_waited(self) -> bool:
        """Whether it has had to wait."""
        return self._position > 0

    def move(self, position: int, wait_s: float | None) -> None:
        if position != self._position:
            self._position, self._wait_s = position, wait_s
            if self._on_move is not None:
                self._on_move(position, wait_s)

    def begin(self) -> None:
        self._begun.set()
        if self.has_waited:
            self.move(0, None)

    def listen(self, on_position: OnPosition) -> None:
        """Called with the position and the wait in seconds, if known, now and when the position changes."""
        self._on_move = on_position
        if self.is_waiting:
            on_position(self._position, self._wait_s)

    async def wait(self) -> None:
        """Returns when the run may begin."""
        await self._begun.wait()

    def leave(self) -> None:
        """The run has come to rest, or goes on elsewhere. A second time changes nothing."""
        if not self._has_left:
            self._has_left = True
            self._admission.leave(self)
