"""Pool of the workers of one stage: chooses the one with the fewest images, and avoids those that failed."""

import asyncio
import functools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from gateway.workers.discovery import Discovery
from gateway.workers.image_queue import Availability, ImageQueue, WaitRequest
from gateway.workers.worker import Worker
from services.errors import NoWorker, TriptychError
from services.serving.tracing.spans import record_span
from triptych.v1.stage_pb2 import ModelInfo

# A worker that a call was lost on is given nothing for a while, though it may answer its health check at once: so long
# at first, twice as long each time, until a picture of it arrives. One that stalled is left alone for longer, since what
# hangs is often the device, which the health check does not test.
LOST_PAUSE_S, STALL_PAUSE_S, LONGEST_PAUSE_S = 1.0, 5.0, 300.0
# So many answers that cannot be right, one after the other, and it is taken for broken as a whole.
MAX_BROKEN_ANSWERS = 3


# Less is no wait that a trace should show.
SHORTEST_WAIT_NS = 1_000_000


class ModelUnavailable(NoWorker):
    """There are workers, and none has the model that the run began with."""

    reason = "MODEL_GONE"


class Pool:
    """Use as a context manager: its workers are looked after from entry to exit."""

    def __init__(self, discovery: Discovery) -> None:
        self.stage = discovery.stage
        self.discovery = discovery
        self._clock = discovery.clock
        self._queue = ImageQueue(self._clock)
        # Set, and replaced, when a worker may be given work that could not before, or none any more.
        self._changed = asyncio.Event()
        discovery.on_change = self._notify

    async def __aenter__(self) -> Self:
        await self.discovery.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.discovery.__aexit__(kind, error, trace)
        self._queue.close()

    @property
    def healthy(self) -> list[Worker]:
        return self.discovery.healthy

    async def healthy_or_raise(self) -> list[Worker]:
        """The workers that can be given work, asked anew if none is known; raises NoWorker."""
        await self.discovery.refresh_until(lambda: self.healthy)
        if not self.healthy:
            raise NoWorker(self.discovery.why_none())
        return self.healthy

    @asynccontextmanager
    async def acquire(
        self,
        model_digest: str,
        *,
        exclude: Collection[str] = (),
        avoid: Collection[str] = (),
        exclusive: bool = False,
        timeout_s: float = 0.0,
        wait_for_room: WaitRequest | None = None,
        num_images: int = 1,
    ) -> AsyncIterator[Worker]:
        """Inside the block the worker with that model and the fewest images has `num_images` more.

        Addresses in `avoid` are chosen only where there is no other, those in `exclude` never. An `exclusive` caller
        waits until the worker has no other image, and it gets none meanwhile. `wait_for_room` also waits until one has
        room. `timeout_s` is how long to wait for a worker to appear. Raises NoWorker, and DeadlineExceeded for
        `wait_for_room`.
        """
        began_ns = time.time_ns()
        worker = await self._choose(model_digest, exclude, avoid, exclusive, timeout_s, wait_for_room)
        if time.time_ns() - began_ns > SHORTEST_WAIT_NS:
            attributes = {"triptych.queue": "gateway", "triptych.stage": self.stage.name}
            record_span("queue", began_ns, attributes=attributes)
        worker.outstanding += num_images
        try:
            yield worker
        finally:
            worker.outstanding -= num_images
            if worker.is_on_probation or worker.is_reserved:
                self._notify()
            worker.is_reserved = worker.is_reserved and not exclusive
            self._queue.dispatch()

    async def _choose(
        self,
        model_digest: str,
        exclude: Collection[str],
        avoid: Collection[str],
        exclusive: bool,
        timeout_s: float,
        wait_for_room: WaitRequest | None,
    ) -> Worker:
        until = self._clock() + timeout_s
        await self.discovery.refresh_until(lambda: self._candidates(model_digest, exclude))
        while True:
            changed = self._changed
            if wait_for_room is None or exclusive:
                found = self._candidates(model_digest, exclude)
                worker = min(found, key=lambda one: (one.address in avoid, one.load), default=None)
            else:
                worker = await self._take_room(model_digest, exclude, avoid, wait_for_room)
            if worker is not None:
                if not exclusive or await self._drain(worker):
                    return worker
                continue
            left_s = until - self._clock()
            if left_s <= 0:
                raise self._no_worker_error(model_digest)
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                continue

    @property
    def num_waiting(self) -> int:
        """Pictures that wait for a worker to have room."""
        return len(self._queue)

    def has_available(self, model_digest: str, *, exclude: Collection[str]) -> bool:
        """Whether a worker could be given a picture of that model now."""
        return bool(self._candidates(model_digest, exclude))

    async def _take_room(
        self, model_digest: str, exclude: Collection[str], avoid: Collection[str], waiter: WaitRequest
    ) -> Worker | None:
        """The worker with room that has least to do, at the waiter's turn; None where none may be given the picture."""
        look = functools.partial(self._look, model_digest, exclude, avoid)
        while (found := look()).has_to_wait:
            kind = f"{model_digest} {sorted(exclude)} {sorted(avoid)}"
            worker = await self._queue.wait(waiter, kind, look)
            if worker is not None:
                worker.promised -= 1
                if worker in self._candidates(model_digest, exclude):
                    return worker
                self._queue.dispatch()
        return found.worker

    def _look(self, model_digest: str, exclude: Collection[str], avoid: Collection[str]) -> Availability:
        found = self._candidates(model_digest, exclude)
        better = [worker for worker in found if worker.address not in avoid] or found
        free = [worker for worker in better if not worker.is_full]
        if free or not found:
            return Availability(min(free, key=lambda worker: worker.load, default=None))
        # One that becomes free as soon as any: what waits there already goes first.
        num_ahead = min(worker.load - worker.model.limits.num_slots for worker in better)
        waits = [worker.queue_rate.wait_s(num_ahead) for worker in better]
        known = [wait_s for wait_s in waits if wait_s is not None]
        return Availability(has_to_wait=True, num_ahead=num_ahead, wait_s=min(known, default=None))

    async def _drain(self, worker: Worker) -> bool:
        """Reserves the worker and waits until its work is done; false where it is lost over that."""
        worker.is_reserved = True
        is_empty = False
        try:
            while worker.outstanding and worker in self.healthy:
                await self._changed.wait()
            is_empty = worker in self.healthy
        finally:
            worker.is_reserved = is_empty
        return is_empty

    def _candidates(self, model_digest: str, exclude: Collection[str]) -> list[Worker]:
        return [
            worker
            for worker in self.healthy
            if worker.model.digest == model_digest and worker.address not in exclude and worker.has_room
        ]

    def _no_worker_error(self, model_digest: str) -> NoWorker:
        if self.healthy and not any(worker.model.digest == model_digest for worker in self.discovery.workers):
            return ModelUnavailable(
                f"no {self.stage.worker_name} has the model that this run began with any more ({model_digest[:12]}); start one "
                "that has it, or start the run again"
            )
        return NoWorker(self.discovery.why_none())

    def touch(self, worker: Worker) -> None:
        """The worker said something of a picture."""
        worker.heard_at = self._clock()

    def report_succeeded(self, worker: Worker) -> None:
        """A picture of the worker arrived: what was held against it is forgotten."""
        worker.num_losses = worker.num_broken_answers = 0
        if worker.is_on_probation:
            worker.is_on_probation = False
            self._notify()

    def report_failed(self, worker: Worker, error: TriptychError) -> None:
        """A call to the worker failed; all that it had when it was lost count as one loss.

        A single answer that cannot be right may be the picture's fault; several in a row are the worker's.
        """
        match error.reason:
            case "WORKER_LOST":
                self._pause(worker, "its call broke off", LOST_PAUSE_S)
            case "WORKER_EVICTED" | "NOT_READY":
                self.discovery.note(worker, "it is starting up or draining")
            case "WORKER_BROKEN":
                worker.num_broken_answers += 1
                if worker.num_broken_answers >= MAX_BROKEN_ANSWERS:
                    self._pause(worker, str(error), STALL_PAUSE_S)

    def report_stalled(self, worker: Worker, problem: str, silence_s: float) -> None:
        """A picture has made no progress for so long; those who wait in the queue behind it had better leave.

        Where the worker has gone on with others meanwhile it is the picture, and nothing is held against the worker.
        """
        if self._clock() - worker.heard_at < silence_s / 2:
            return
        self._pause(worker, problem, STALL_PAUSE_S)
        for abort in list(worker.on_stall):
            abort()

    def _pause(self, worker: Worker, problem: str, first_s: float) -> None:
        if worker.problem:
            return
        pause_s = min(first_s * 2**worker.num_losses, LONGEST_PAUSE_S)
        worker.is_on_probation = worker.num_losses > 0 or first_s == STALL_PAUSE_S
        worker.num_losses += 1
        worker.paused_until = self._clock() + pause_s
        self.discovery.note(worker, f"{problem}; it is given nothing for {pause_s:g} s")

    async def refresh(self) -> None:
        """Asks after every worker now."""
        await self.discovery.refresh()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._queue.dispatch()


def models_of(workers: Sequence[Worker]) -> list[tuple[ModelInfo, int]]:
    """The different models that the workers serve, each with how many do, most first."""
    by_digest: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers:
        by_digest[worker.model.digest].append(worker)
    groups = sorted(by_digest.values(), key=len, reverse=True)
    return [(group[0].model, len(group)) for group in groups]
