"""Continuous batching at step granularity: many callers' jobs share one device, joining and leaving between steps.

A stage gives a Stepper; the engine owns the device thread, the slots and the queue. One image is one job. It knows
no network, no proto and no framework; blocking work meets the event loop here and in delivery.py, and nowhere else.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from services.engine.events import Accepted, Event, EventMailbox, Progress
from services.engine.output_processor import OutputProcessor, Request, ScheduledJob
from services.engine.stepper import JobRequest, ManyStepper, Stepper
from services.errors import DeadlineExceeded, QueueFull, WorkerEvicted
from services.queues import FairQueue, QueueRate

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Generic[Job]):
    """Runs a stepper for many callers. Use as `async with Engine(stepper, max_queue=64) as engine`."""

    def __init__(
        self, stepper: Stepper[Job, Any], *, max_queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_slots = stepper.num_slots
        self.max_queue = max_queue
        self._stepper = stepper
        self._many_stepper = stepper if isinstance(stepper, ManyStepper) else None
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: FairQueue[ScheduledJob[Job]] = FairQueue()
        self._slots: dict[int, ScheduledJob[Job]] = {}
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closing = False
        self._rate = QueueRate()  # of finished jobs while busy
        self._last_finished_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._delivery = OutputProcessor(stepper.decode, clock)
        self._num_undecoded = 0  # finished pictures that hold memory without a slot
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed = asyncio.Event()  # set when the device thread died of a bug: the process should end

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        # Every step is short, so the device thread is back soon; the loop stays free meanwhile.
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._delivery.close)

    @asynccontextmanager
    async def submit(
        self, tickets: Sequence[JobRequest[Job]], *, caller: str, timeout_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Queues all jobs of a request, or none, and gives their events; leaving the block cancels what is not done.

        Raises QueueFull when they do not fit, WorkerEvicted when the engine is closing.
        """
        now = self._clock()
        request = Request(
            caller,
            EventMailbox(len(tickets)),
            asyncio.get_running_loop(),
            None if timeout_s is None else now + timeout_s,
        )
        with self._changed:
            self._check_room(len(tickets))
            for ticket in tickets:
                self._waiting.push(ScheduledJob(ticket, request, now), caller)
            self._post_positions()
            self._changed.notify()
        try:
            yield request.mailbox.events()
        finally:
            with self._changed:
                request.cancelled = True
                self._waiting.remove(lambda work: work.request is request)
                self._changed.notify()

    async def run_between_steps(self, work: Callable[[], Result]) -> Result:
        """Runs something short on the device thread, between two steps, and returns or raises what it does."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closing:
                raise WorkerEvicted("this worker is stopping; try another one")
            self._calls.append((future, work))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    @property
    def num_waiting(self) -> int:
        with self._changed:
            return len(self._waiting)

    @property
    def num_running(self) -> int:
        with self._changed:
            return len(self._slots)

    def _check_room(self, num_jobs: int) -> None:
        if self._closing:
            raise WorkerEvicted("this worker is stopping; try another one")
        room = self.max_queue + self.num_slots - len(self._slots) - len(self._waiting)
        if num_jobs > room:
            raise QueueFull(
                f"{len(self._waiting)} images are waiting and there is room for {max(room, 0)} more, got {num_jobs}; "
                "try again later, or ask for fewer",
                retry_after_s=round(max(1.0, self._rate.wait_s(num_jobs - room) or 0.0), 1),
            )

    # The rest runs on the device thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._run_calls()
                self._drop_cancelled()
                self._admit()
                self._step()
        except BaseException:
            log.exception("the engine's device thread died")
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self.failed.set)
        finally:
            self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closing or self._slots or self._can_admit() or self._calls):
                if not self._waiting:
                    self._last_finished_at = None
                self._changed.wait()
            return not self._closing

    def _can_admit(self) -> bool:
        """Steps must not run ahead of the decoding of what they finish."""
        is_free = len(self._slots) < self.num_slots and self._num_undecoded < self.num_slots
        return is_free and len(self._waiting) > 0

    def _run_calls(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    return
                future, work = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - it belongs to the caller that waits for it
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        now = self._clock()

        def is_late(work: ScheduledJob[Job]) -> bool:
            return work.request.deadline is not None and now >= work.request.deadline

        with self._changed:
            late = self._waiting.remove(is_late)
            dropped = [slot for slot, work in self._slots.items() if work.request.cancelled or is_late(work)]
        late += [self._slots[slot] for slot in dropped if not self._slots[slot].request.cancelled]
        for slot in dropped:
            self._free(slot)
        for work in late:
            work.fail(DeadlineExceeded("the caller's deadline passed before the picture was done"))

    def _admit(self) -> None:
        """Fills free slots with waiting jobs, in turns between callers."""
        while True:
            with self._changed:
                if not self._can_admit():
                    break
                free = next(slot for slot in range(self.num_slots) if slot not in self._slots)
                work = self._waiting.pop()
                self._slots[free] = work
            work.admitted_at = self._clock()
            try:
                work.num_steps = self._stepper.admit(free, work.ticket.job)
            except Exception as error:  # noqa: BLE001 - whatever a job dies of, it dies of it alone
                self._free(free)
                work.fail(error)
        with self._changed:
            self._post_positions()

    def _step(self) -> None:
        slots = sorted(self._slots)
        if not slots:
            return
        started_at = self._clock()
        stepped = self._step_each(slots)
        elapsed_s = self._clock() - started_at
        self._delivery.add_step_time(elapsed_s)
        done = []
        for slot, num_steps in stepped:
            work = self._slots[slot]
            work.step += num_steps
            work.compute_s += elapsed_s
            every = work.ticket.preview_every
            if work.step == work.num_steps:
                done.append(slot)
            else:
                work.request.post(Progress(work.index, work.step, work.num_steps))
                work.is_preview_due |= bool(every) and work.step % every == 0
        self._finish(done)
        self._preview()

    def _step_each(self, slots: list[int]) -> list[tuple[int, int]]:
        """All in one batch; if it fails, each slot alone. Fails those jobs that fail alone.

        Returns the others, with the number of steps that each has made.
        """
        try:
            num_steps = 1
            if self._many_stepper is not None:
                num_steps = self._many_stepper.step_many(slots, min(map(self._steps_to_event, slots)))
            else:
                self._stepper.step(slots)
        except Exception as error:  # noqa: BLE001 - as in _admit
            if len(slots) == 1:
                self._fail(slots[0], error)
                return []
            log.warning(
                "a batch of %d failed (%s); trying its jobs one by one", len(slots), type(error).__name__
            )
            return [stepped for slot in slots for stepped in self._step_each([slot])]
        return [(slot, num_steps) for slot in slots]

    def _steps_to_event(self, slot: int) -> int:
        """Steps until the slot's image is done or its next preview is due: what may happen in one dispatch."""
        work, every = self._slots[slot], self._slots[slot].ticket.preview_every
        left = work.num_steps - work.step
        return min(left, every - work.step % every) if every else left

    def _finish(self, slots: list[int]) -> None:
        works, views = [], []
        try:
            for slot in slots:
                work = self._slots[slot]
                try:
                    view = self._stepper.result(slot)
                except Exception as error:  # noqa: BLE001 - as in _admit
                    self._fail(slot, error)
                    continue
                self._free(slot)
                self._measure_rate(self._clock())
                works.append(work)
                views.append(view)
        finally:
            if works:
                with self._changed:
                    self._num_undecoded += len(works)
                self._delivery.deliver_results(works, views, lambda: self._count_decoded(len(works)))

    def _count_decoded(self, count: int) -> None:
        with self._changed:
            self._num_undecoded -= count
            self._changed.notify()

    def _preview(self) -> None:
        due = [(slot, work) for slot, work in self._slots.items() if work.is_preview_due]
        if not due or not self._delivery.previews_allowed:
            return
        works, views = [], []
        for slot, work in due:
            work.is_preview_due = False
            try:
                view = self._stepper.preview(slot)
                if view is not None:  # else there is nothing to see of it yet
                    views.append(view)
                    works.append(work)
            except Exception:
                log.exception("a preview failed")
        self._delivery.deliver_previews(works, views)

    def _fail(self, slot: int, error: Exception) -> None:
        work = self._slots[slot]
        self._free(slot)
        work.fail(error)

    def _free(self, slot: int) -> None:
        self._stepper.release(slot)
        with self._changed:
            del self._slots[slot]

    def _fail_all(self) -> None:
        with self._changed:
            self._closing = True
            left = list(self._slots.values()) + self._waiting.remove(lambda _: True)
            self._slots.clear()
            calls = list(self._calls)
            self._calls.clear()
        for future, _ in calls:
            future.set_exception(WorkerEvicted("this worker stopped; try another one"))
        for work in left:
            work.fail(WorkerEvicted("this worker stopped; try another one"))

    def _measure_rate(self, now: float) -> None:
        if self._last_finished_at is not None:
            self._rate.moved(1, now - self._last_finished_at)
        self._last_finished_at = now

    def _post_positions(self) -> None:
        """Reports changed queue positions to the waiting requests; a request with a running job has position 0."""
        places: dict[Request, int] = {work.request: 0 for work in self._slots.values()}
        for place, work in enumerate(self._waiting):
            places.setdefault(work.request, place + 1)
        for request, place in places.items():
            if request.position != place:
                request.position = place
                request.post(Accepted(place))
