"""One picture from whichever worker can make it: deadlines, stalls, and another worker when the first is lost.

What a stage delivered is kept; only what is missing is asked for again, with the same index and seed, so the picture
is the same wherever it is made. It knows nothing of runs.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import grpc

from gateway.line import OnMove, Waiter
from gateway.pace import Pace
from gateway.pool import ModelGone, Pool
from gateway.stage_errors import StageError, from_failure, from_rpc
from gateway.stages import Job, StageKind
from gateway.worker import Worker
from services.errors import DeadlineExceeded, NoWorker, TriptychError
from services.images import read_png_size
from triptych.v1.stage_pb2 import StageEvent

log = logging.getLogger(__name__)

# Of one picture in all, those included that no worker is to blame for, such as its drain.
MAX_ATTEMPTS = 10
# A full queue is no failure of the worker: wait for it this long in all.
QUEUE_PATIENCE_S = 60.0
# What another worker may do better; anything else would fail there, too.
SECOND_CHANCE = {"WORKER_EVICTED", "WORKER_LOST", "WORKER_STALLED", "WORKER_BROKEN", "NOT_READY", "INTERNAL"}
# After these the same worker would answer the same.
_FOR_ANOTHER = {"WORKER_BROKEN", "INTERNAL"}
# These say nothing of the picture.
_GOING_AWAY = {"WORKER_EVICTED", "NOT_READY"}


@dataclass(frozen=True)
class Patience:
    """How long a call to a stage may take. `deadline` is the caller's, on the event loop's clock."""

    # Silence of a picture that is being made: a worker that hangs although its machine answers. One step of a full
    # batch of GLID-3-xl takes a minute or two without an accelerator.
    stall_timeout_s: float = 300.0
    # The whole call, its time in the worker's queue included.
    call_timeout_s: float = 4 * 3600.0
    deadline: float | None = None
    # A worker's queue in which nothing moves.
    queue_timeout_s: float = 1800.0
    # Until there is a worker that can be given the picture: one may be on its way up, and load gigabytes.
    worker_timeout_s: float = 300.0
    # A picture that so many workers were lost on as they made it is taken for the cause.
    max_workers: int = 3

    def until(self, deadline: float | None) -> "Patience":
        return replace(self, deadline=deadline)

    def timeout_s(self) -> float:
        """Of a call that begins now; raises DeadlineExceeded when the caller's has passed."""
        if self.deadline is None:
            return self.call_timeout_s
        left_s = self.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded("the caller's deadline passed before the picture was done")
        return min(self.call_timeout_s, left_s)


@dataclass(frozen=True)
class Started:
    """The picture has been asked of a worker, for the `attempt`-th time; again where its queue was full before."""

    worker: Worker
    attempt: int
    is_again: bool = False


@dataclass(frozen=True)
class Retrying:
    """The attempt failed, and another worker is asked."""

    error: TriptychError


@dataclass(frozen=True)
class Waiting:
    """There is no worker that the picture could be asked of now, after an attempt or before the first."""

    error: TriptychError


Happening = Started | Retrying | Waiting | StageEvent


async def make_picture(
    pool: Pool,
    job: Job,
    digest: str,
    patience: Patience,
    *,
    num_attempts: int = 0,
    on_move: OnMove = lambda position, wait_s: None,
) -> AsyncGenerator[Happening]:
    """Yields what happens until the picture and its timing are there; closing it cancels the work.

    `num_attempts` were made before. `on_move` is told its place while it waits for a worker to have room. Raises
    NoWorker, DeadlineExceeded or StageError when the picture cannot be had.
    """
    full: Worker | None = None
    untold: StageError | None = None
    failures = Failures(patience.max_workers, picture=f"{pool.kind.name}-{job.index}")
    queue_until = asyncio.get_running_loop().time() + QUEUE_PATIENCE_S
    while True:
        alone = failures.must_be_alone
        if untold is not None and alone:
            # It may have to wait until a worker has nothing else to do.
            yield Retrying(untold)
            untold = None
        waiter = Waiter(job.caller, patience.timeout_s(), on_move)
        try:
            worker = await failures.choose(pool, digest, waiter=waiter, alone=alone)
        except DeadlineExceeded:
            raise
        except TriptychError as error:
            if not (patience.worker_timeout_s and failures.may_wait):
                raise
            yield Waiting(error)
            untold = None
            worker = await failures.choose(pool, digest, patience, waiter=waiter, alone=alone)
        # Nothing may come between here and the block that the worker is counted in.
        is_again, full = worker is full, None
        num_attempts += not is_again
        has_picture = False
        try:
            with pool.working(worker, alone=alone):
                if untold is not None:
                    yield Retrying(untold)
                    untold = None
                yield Started(worker, num_attempts, is_again)
                async with aclosing(_attempt(pool, worker, job, patience)) as events:
                    async for event in events:
                        if event.HasField("image"):
                            has_picture = True
                            pool.succeeded(worker)
                        yield event
            return
        except StageError as error:
            if has_picture:
                log.info("%s %s was lost after the picture: %s", pool.kind.worker, worker.address, error)
                return
            if error.reason == "QUEUE_FULL":
                full = worker
                if not failures.has_another(pool, digest, worker):
                    await _wait_for_room(error, queue_until)
                    failures.full.clear()
                continue
            failures.add(worker, error)
            untold = error


class Failures:
    """What one piece of work failed of so far, and where; raises it when enough has been tried.

    `picture` is what it makes, and what is named as the cause where worker after worker fails of it.
    """

    def __init__(self, max_workers: int, *, picture: str = "") -> None:
        self._max_workers = max_workers
        self._picture = picture
        self._errors: list[StageError] = []
        # Workers that would answer the same again, and those that may do better after a restart.
        self._useless: list[str] = []
        self._unlucky: list[str] = []
        # Those that had no room since it was last waited for.
        self.full: list[str] = []
        # Workers that failed as they made it, and those of them that others had their pictures on, too.
        self._num_blamed = self._num_lost = 0

    def add(self, worker: Worker, error: StageError) -> None:
        self._errors.append(error)
        (self._useless if error.reason in _FOR_ANOTHER else self._unlucky).append(worker.address)
        is_blamed = not error.is_in_queue and error.reason not in _GOING_AWAY
        self._num_blamed += is_blamed
        self._num_lost += is_blamed and error.reason not in _FOR_ANOTHER
        if error.reason not in SECOND_CHANCE or len(self._errors) >= MAX_ATTEMPTS:
            raise error
        if self._num_blamed < self._max_workers:
            return
        if self._max_workers == 1 or not self._picture:
            raise error
        raise StageError(
            f"{self._picture} is given up: {self._num_blamed} workers failed as they made it; the last one: {error}",
            status=grpc.StatusCode.INTERNAL,
            reason="IMAGE_POISONED",
        )

    def has_another(self, pool: Pool, digest: str, full: Worker) -> bool:
        """Whether there is a worker that may have room, where this one has none."""
        self.full.append(full.address)
        return pool.has(digest, but=[*self._useless, *self.full])

    @property
    def last(self) -> StageError | None:
        return self._errors[-1] if self._errors else None

    @property
    def may_wait(self) -> bool:
        """Whether a worker that comes up could do better; after some failures only one that is there already."""
        return self.last is None or self.last.reason not in _FOR_ANOTHER

    @property
    def must_be_alone(self) -> bool:
        """Whether one more loss is the last: then nobody else's picture may have been the cause of it."""
        return bool(self._picture) and self._num_lost > 0 and self._num_blamed == self._max_workers - 1

    async def choose(
        self,
        pool: Pool,
        digest: str,
        patience: Patience | None = None,
        *,
        waiter: Waiter | None = None,
        alone: bool = False,
    ) -> Worker:
        """A worker that may do better, now or with patience. Raises the last failure where there is none, else NoWorker."""
        wait_s = min(patience.worker_timeout_s, patience.timeout_s()) if patience and self.may_wait else 0.0
        try:
            return await pool.choose(
                digest,
                but=self._useless,
                rather_not=[*self._unlucky, *self.full],
                alone=alone,
                patience_s=wait_s,
                waiter=waiter,
            )
        except ModelGone:
            raise
        except NoWorker:
            # That nobody else is there says less than what the one who was there failed of.
            if self.last is not None:
                raise self.last from None
            raise


async def _attempt(pool: Pool, worker: Worker, job: Job, patience: Patience) -> AsyncGenerator[StageEvent]:
    """The events of one picture from one worker; raises StageError."""
    where = f"{pool.kind.worker} {worker.address}"
    stream = pool.kind.start(worker.channel, job, patience.timeout_s())
    seat = Seat(patience, worker.pace)
    has_picture = False
    worker.on_stall.add(seat.leave)
    try:
        while True:
            async with asyncio.timeout(seat.limit_s) as seat.limit:
                event = await stream.read()
            seat.limit = None
            if event is None:
                break
            if problem := _find_fault(event, job, pool.kind, has_picture=has_picture):
                raise _broken(f"{where} was asked for image {job.index} and answered with {problem}")
            pool.heard(worker)
            seat.move(event)
            if event.HasField("failure"):
                raise from_failure(event.failure, where)
            has_picture = has_picture or event.HasField("image")
            yield event
        if not has_picture:
            raise _broken(f"{where} ended without the picture")
    except TimeoutError:
        error = seat.stalled(where)
        if not seat.is_left:
            pool.stalled(worker, str(error), patience.stall_timeout_s)
        raise error from None
    except grpc.aio.AioRpcError as error:
        raised = seat.blame(from_rpc(error, where))
        pool.failed(worker, raised)
        raise raised from None
    except StageError as error:
        pool.failed(worker, error)
        raise seat.blame(error) from None
    finally:
        worker.on_stall.discard(seat.leave)
        stream.cancel()


class Seat:
    """Where a picture is at its worker: on its way, in the queue, or being made; and how long it may be silent there."""

    def __init__(self, patience: Patience, pace: Pace) -> None:
        self._patience = patience
        # Of the queue, which this picture measures as it moves with it.
        self._pace = pace
        self._position, self._moved_at = 0, 0.0
        self.is_waiting = False
        self.is_being_made = False
        # Whether it left the queue because the worker has stalled with others.
        self.is_left = False
        # Of the read that is under way.
        self.limit: asyncio.Timeout | None = None

    @property
    def limit_s(self) -> float:
        if self.is_left:
            return 0.0
        # A queue may well stand still for longer than a picture that is being made.
        return self._patience.queue_timeout_s if self.is_waiting else self._patience.stall_timeout_s

    def move(self, event: StageEvent) -> None:
        position = event.accepted.queue_position if event.HasField("accepted") else 0
        now = asyncio.get_running_loop().time()
        if self._position:
            self._pace.moved(self._position - position, now - self._moved_at)
        self._position, self._moved_at = position, now
        self.is_waiting, self.is_being_made = position > 0, position == 0

    def leave(self) -> None:
        """Gives up the place in the queue, if it has one."""
        if self.is_waiting:
            self.is_left = True
            if self.limit is not None:
                self.limit.reschedule(asyncio.get_running_loop().time())

    def blame(self, error: StageError) -> StageError:
        """Whether the picture may be the cause."""
        error.is_in_queue = not self.is_being_made
        return error

    def stalled(self, where: str) -> StageError:
        """What it means that the limit has passed."""
        if self.is_left:
            text = f"{where} has stalled, and the picture left its queue"
        elif self.is_waiting:
            text = f"the queue of {where} has not moved for {self.limit_s:g} s"
        else:
            text = f"{where} has been silent for {self.limit_s:g} s"
        return self.blame(StageError(text, reason="WORKER_STALLED", retry_after_s=5.0))


def _find_fault(event: StageEvent, job: Job, kind: StageKind, *, has_picture: bool) -> str:
    """What of the event cannot belong to the job; empty if nothing."""
    match event.WhichOneof("kind"):
        case "accepted":
            return ""
        case None:
            return "an empty event"
        case name:
            detail = getattr(event, name)
    if detail.index != job.index:
        return f"a {name} of image {detail.index}"
    if name != "image":
        return ""
    if has_picture:
        return "a second picture"
    if not (detail.image.data and detail.image.width > 0 and detail.image.height > 0):
        return "a picture without data or size"
    if kind.is_seeded and detail.seed != job.seed:
        return f"a picture of seed {detail.seed} where {job.seed} was asked for"
    # The next stage and every caller take it for what it says it is; nobody else on the way looks inside.
    if detail.image.mime_type not in ("", "image/png"):
        return f"a picture of type {detail.image.mime_type[:40]!r}"
    try:
        size = read_png_size(detail.image.data)
    except ValueError as error:
        return str(error)
    if size != (detail.image.width, detail.image.height):
        said = f"{detail.image.width} x {detail.image.height}"
        return f"a picture of {size[0]} x {size[1]} pixels that is said to have {said}"
    return ""


def _broken(message: str) -> StageError:
    log.error("%s", message)
    return StageError(message, reason="WORKER_BROKEN", retry_after_s=1.0)


async def _wait_for_room(error: StageError, until: float) -> None:
    """Sleeps until the worker may have room; raises the error when the patience has an end."""
    delay_s = error.retry_after_s or 1.0
    if asyncio.get_running_loop().time() + delay_s > until:
        raise error
    await asyncio.sleep(delay_s)
