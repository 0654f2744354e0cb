"""Continuous batching at step granularity: many callers' jobs share one device, joining and leaving between steps.

A stage gives a Stepper; the engine owns the device thread, the slots and the queue. One image is one job. It knows
no network, no proto and no framework, and is the only file where blocking work meets the event loop.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from services.errors import DeadlineExceeded, DeviceOutOfMemory, QueueFull, TriptychError, WorkerEvicted
from services.events import (
    Accepted,
    EncodedPicture,
    Event,
    Failed,
    Finished,
    Mailbox,
    Preview,
    Progress,
    Timing,
)
from services.fair_queue import FairQueue
from services.images import Picture, encode_png, encode_preview
from services.stepper import Stepper, Ticket

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(eq=False)
class Request:
    """The jobs that one call asked for, and where their events go."""

    caller: str
    mailbox: Mailbox
    loop: asyncio.AbstractEventLoop
    deadline: float | None
    cancelled: bool = False
    position: int | None = None

    def post(self, event: Event) -> None:
        """Hands an event to the reader's loop, from any thread."""
        # The loop is closed only when the process ends; nobody is there to read then.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.mailbox.put, event)


@dataclass(eq=False)
class _Work(Generic[Job]):
    """A job from acceptance to delivery; written by the device thread once it is admitted."""

    ticket: Ticket[Job]
    request: Request
    accepted_at: float
    admitted_at: float = 0.0
    step: int = 0
    num_steps: int = 0
    compute_s: float = 0.0
    # Set by the device thread, cleared by the encoder's.
    preview_encoding: bool = False

    @property
    def index(self) -> int:
        return self.ticket.index


class Engine(Generic[Job]):
    """Runs a stepper for many callers. Use as `async with Engine(stepper, max_queue=64) as engine`."""

    def __init__(
        self, stepper: Stepper[Job], *, max_queue: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_slots = stepper.num_slots
        self.max_queue = max_queue
        self._stepper = stepper
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: FairQueue[_Work[Job]] = FairQueue()
        self._slots: dict[int, _Work[Job]] = {}
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._closing = False
        self._seconds_per_job = 1.0  # moving average between finished jobs while busy; starts as a guess
        self._last_finished_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._encoder = ThreadPoolExecutor(1, "encoder")
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
        await asyncio.to_thread(self._encoder.shutdown)

    @asynccontextmanager
    async def submit(
        self, tickets: Sequence[Ticket[Job]], *, caller: str, timeout_s: float | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Queues all jobs of a request, or none, and gives their events; leaving the block cancels what is not done.

        Raises QueueFull when they do not fit, WorkerEvicted when the engine is closing.
        """
        now = self._clock()
        request = Request(
            caller,
            Mailbox(len(tickets)),
            asyncio.get_running_loop(),
            None if timeout_s is None else now + timeout_s,
        )
        with self._changed:
            self._check_room(len(tickets))
            for ticket in tickets:
                self._waiting.push(_Work(ticket, request, now), caller)
            self._post_positions()
            self._changed.notify()
        try:
            yield request.mailbox.events()
        finally:
            with self._changed:
                request.cancelled = True
                self._waiting.remove(lambda work: work.request is request)
                self._changed.notify()

    async def call(self, work: Callable[[], Result]) -> Result:
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
                retry_after_s=round(max(1.0, (num_jobs - room) * self._seconds_per_job), 1),
            )

    # The rest runs on the device thread.

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._make_calls()
                self._drop_unwanted()
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
            while not (self._closing or self._slots or self._waiting or self._calls):
                self._last_finished_at = None
                self._changed.wait()
            return not self._closing

    def _make_calls(self) -> None:
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

    def _drop_unwanted(self) -> None:
        now = self._clock()

        def is_late(work: _Work[Job]) -> bool:
            return work.request.deadline is not None and now >= work.request.deadline

        with self._changed:
            late = self._waiting.remove(is_late)
            dropped = [slot for slot, work in self._slots.items() if work.request.cancelled or is_late(work)]
        late += [self._slots[slot] for slot in dropped if not self._slots[slot].request.cancelled]
        for slot in dropped:
            self._free(slot)
        for work in late:
            self._fail(work, DeadlineExceeded("the caller's deadline passed before the picture was done"))

    def _admit(self) -> None:
        """Fills free slots with waiting jobs, in turns between callers."""
        while True:
            with self._changed:
                free = next((slot for slot in range(self.num_slots) if slot not in self._slots), None)
                if free is None or not self._waiting:
                    break
                work = self._waiting.pop()
                self._slots[free] = work
            work.admitted_at = self._clock()
            try:
                work.num_steps = self._stepper.admit(free, work.ticket.job)
            except Exception as error:  # noqa: BLE001 - whatever a job dies of, it dies of it alone
                self._free(free)
                self._fail(work, error)
        with self._changed:
            self._post_positions()

    def _step(self) -> None:
        slots = sorted(self._slots)
        if not slots:
            return
        started_at = self._clock()
        stepped = self._each(self._step_all, slots)
        elapsed_s = self._clock() - started_at
        done, due = [], []
        for slot in stepped:
            work = self._slots[slot]
            work.step += 1
            work.compute_s += elapsed_s
            every = work.ticket.preview_every
            if work.step == work.num_steps:
                done.append(slot)
            else:
                work.request.post(Progress(work.index, work.step, work.num_steps))
                # A preview that is still being encoded means that the reader could not use another one yet.
                if every and work.step % every == 0 and not work.preview_encoding:
                    due.append(slot)
        self._finish(done)
        for slot, picture in self._each(self._stepper.preview, due).items():
            work = self._slots[slot]
            work.preview_encoding = True
            self._encoder.submit(self._deliver_preview, work, work.step, picture)

    def _step_all(self, slots: Sequence[int]) -> list[None]:
        self._stepper.step(slots)
        return [None] * len(slots)

    def _finish(self, slots: list[int]) -> None:
        started_at = self._clock()
        pictures = self._each(self._stepper.result, slots)
        now = self._clock()
        for slot, picture in pictures.items():
            work = self._slots[slot]
            work.compute_s += now - started_at
            self._free(slot)
            self._measure_pace(now)
            self._encoder.submit(self._deliver_result, work, picture, now)

    def _each(self, run: Callable[[Sequence[int]], Sequence[Result]], slots: list[int]) -> dict[int, Result]:
        """Runs a batch; if it fails, each slot alone, and fails those jobs that fail alone."""
        if not slots:
            return {}
        try:
            return dict(zip(slots, run(slots), strict=True))
        except Exception as error:  # noqa: BLE001 - as in _admit
            if len(slots) == 1:
                work = self._slots[slots[0]]
                self._free(slots[0])
                self._fail(work, error)
                return {}
            log.warning("a batch of %d failed (%r); trying its jobs one by one", len(slots), error)
        results: dict[int, Result] = {}
        for slot in slots:
            results |= self._each(run, [slot])
        return results

    def _free(self, slot: int) -> None:
        self._stepper.release(slot)
        with self._changed:
            del self._slots[slot]

    def _fail(self, work: _Work[Job], error: Exception) -> None:
        if isinstance(error, MemoryError):
            error = DeviceOutOfMemory(
                "the device has no memory left for this picture; try again, or ask for less"
            )
        elif not isinstance(error, TriptychError):
            log.error("image %d failed", work.index, exc_info=error)
            error = TriptychError("internal error; see the worker's log")
        work.request.post(Failed(work.index, error))

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
            work.request.post(Failed(work.index, WorkerEvicted("this worker stopped; try another one")))

    def _measure_pace(self, now: float) -> None:
        if self._last_finished_at is not None:
            self._seconds_per_job += 0.2 * (now - self._last_finished_at - self._seconds_per_job)
        self._last_finished_at = now

    def _post_positions(self) -> None:
        """Tells each waiting request its place, where it changed; a request with a running job stands at 0."""
        places: dict[Request, int] = {work.request: 0 for work in self._slots.values()}
        for place, work in enumerate(self._waiting):
            places.setdefault(work.request, place + 1)
        for request, place in places.items():
            if request.position != place:
                request.position = place
                request.post(Accepted(place))

    # On the encoder's thread, so that compressing a picture does not hold up the device.

    def _deliver_preview(self, work: _Work[Job], step: int, picture: Picture) -> None:
        if not work.request.cancelled:
            work.request.post(
                Preview(work.index, step, work.num_steps, _encoded(picture, encode_preview(picture)))
            )
        work.preview_encoding = False

    def _deliver_result(self, work: _Work[Job], picture: Picture, computed_at: float) -> None:
        if work.request.cancelled:
            return
        started_at = self._clock()
        encoded = _encoded(picture, encode_png(picture))
        timing = Timing(
            queue_s=work.admitted_at - work.accepted_at,
            batch_wait_s=max(0.0, computed_at - work.admitted_at - work.compute_s),
            compute_s=work.compute_s,
            encode_s=self._clock() - started_at,
        )
        work.request.post(Finished(work.index, encoded, timing))


def _encoded(picture: Picture, png: bytes) -> EncodedPicture:
    height, width = picture.shape[:2]
    return EncodedPicture(png, width, height)
