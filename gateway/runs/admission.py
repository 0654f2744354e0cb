"""Admission of runs: a concurrency limit and a bounded queue, fair between callers.

It knows callers and turns, and nothing of what a run does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.access.caller import CallerLimits
from services.errors import InvalidRequest, QueueFull, RateLimited, RunNotQueued
from services.queues import WaitingQueue

# Before anything was measured.
RETRY_AFTER_S = 5.0
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
        self._limits: dict[str, CallerLimits] = {}
        self._running: Counter[str] = Counter()
        self._waiting: WaitingQueue[AdmissionTicket] = WaitingQueue(
            clock, lambda ticket, position, wait_s: ticket.move(position, wait_s)
        )
        self._num_waiting: Counter[str] = Counter()

    def enter(
        self,
        caller: str,
        limits: CallerLimits | None = None,
        *,
        run: str = "",
        is_in_turn: bool = False,
        order: int | None = None,
        was_accepted: bool = False,
    ) -> "AdmissionTicket":
        """Takes a place for a run. Raises QueueFull or RateLimited, but for one that `was_accepted` before.

        One that `is_in_turn` waits until no other run of the caller is under way. `order`: its place among the caller's
        waiting runs, lowest first; None: the last.
        """
        if not was_accepted:
            self.check(caller, limits, is_in_turn=is_in_turn)
        turn = AdmissionTicket(self, caller, run, is_in_turn, time.time_ns() if order is None else order)
        self._waiting.enter(turn, caller)
        self._num_waiting[caller] += 1
        if order is not None:
            self._waiting.sort(caller, lambda ticket: ticket.order)
        self._begin_next()
        if turn.is_waiting:
            self._waiting.report_position(turn)
        return turn

    @property
    def num_running(self) -> int:
        return self._running.total()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._waiting.close()

    def leave(self, turn: "AdmissionTicket") -> None:
        if turn.is_waiting:
            self._waiting.leave(turn)
            self._forget(self._num_waiting, turn.caller)
        else:
            self._forget(self._running, turn.caller)
            self._begin_next()

    def plan_move(
        self, turn: "AdmissionTicket", *, before: str | None = None, after: str | None = None
    ) -> dict[str, int]:
        """The orders of the caller's waiting runs, by name, if the run stood before or after another one of them; with
        neither it stands first.

        Raises RunNotQueued, and InvalidRequest for another run that does not wait.
        """
        if not turn.is_waiting:
            raise RunNotQueued(f"{turn.run} does not wait to begin")
        waiting = sorted(
            (one for one in self._waiting if one.caller == turn.caller), key=lambda one: one.order
        )
        orders = [one.order for one in waiting]
        waiting.remove(turn)
        index = 0
        if (anchor := before if before is not None else after) is not None:
            found = next((at for at, one in enumerate(waiting) if one.run == anchor), None)
            if found is None:
                field = "before" if before is not None else "after"
                raise InvalidRequest(
                    field, f"must be another run of the same caller that waits to begin, got {anchor[:80]!r}"
                )
            index = found if before is not None else found + 1
        waiting.insert(index, turn)
        return {one.run: order for one, order in zip(waiting, orders, strict=True)}

    def move(self, turn: "AdmissionTicket", orders: Mapping[str, int], *, is_in_turn: bool) -> None:
        """Applies what `plan_move` returned. What has begun or left meanwhile is not changed."""
        for one in self._waiting:
            if one.caller == turn.caller:
                one.order = orders.get(one.run, one.order)
        turn.is_in_turn = is_in_turn
        self._waiting.sort(turn.caller, lambda ticket: ticket.order)
        self._begin_next()
        self._waiting.report_positions()

    def check(self, caller: str, limits: CallerLimits | None = None, *, is_in_turn: bool = False) -> None:
        """Raises what `enter` would raise now."""
        if limits is not None:
            self._limits[caller] = limits
        # Those that wait for a run of their own caller hold up no other.
        is_held_up = any(one.caller == caller and (is_in_turn or not one.is_in_turn) for one in self._waiting)
        if self._may_begin(caller) and not is_held_up and not (is_in_turn and self._running[caller]):
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
        wait_s = self._waiting.wait_s(1)
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

    def _may_go(self, turn: "AdmissionTicket") -> bool:
        if turn.is_in_turn and self._running[turn.caller]:
            return False
        return self._may_begin(turn.caller)

    def _begin_next(self) -> None:
        while (turn := self._waiting.next_item(self._may_go)) is not None:
            if turn.has_waited:
                self._waiting.count_move()
            self._forget(self._num_waiting, turn.caller)
            self._running[turn.caller] += 1
            turn.begin()

    @staticmethod
    def _forget(counter: Counter[str], caller: str) -> None:
        counter[caller] -= 1
        if not counter[caller]:
            del counter[caller]


class AdmissionTicket:
    """A run's place: it waits, then runs, until it leaves."""

    def __init__(self, admission: Admission, caller: str, run: str, is_in_turn: bool, order: int) -> None:
        self.caller = caller
        self.run = run
        self.is_in_turn = is_in_turn
        # Among the caller's waiting runs the lowest begins first.
        self.order = order
        self._admission = admission
        self._on_move: OnPosition | None = None
        self._position = 0
        self._wait_s: float | None = None
        self.has_left = False
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
        if not self.has_left:
            self.has_left = True
            self._admission.leave(self)
