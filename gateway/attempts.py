"""One picture from whichever worker can make it: deadlines, stalls, and a second worker when the first is lost.

What a stage delivered is kept; only what is missing is asked for again, with the same index and seed, so the picture
is the same wherever it is made. It knows nothing of runs.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from gateway.pool import Pool, Worker
from gateway.stages import Job, StageKind
from services.errors import DeadlineExceeded, DeviceOutOfMemory, NoWorker, TriptychError, WorkerEvicted
from services.images import read_png_size
from triptych.client import read_details
from triptych.v1.pipeline_pb2 import RunError
from triptych.v1.stage_pb2 import StageEvent

log = logging.getLogger(__name__)

# The first worker, and another one.
MAX_ATTEMPTS = 2
# A full queue is no failure of the worker: wait for it this long in all.
QUEUE_PATIENCE_S = 60.0
# What another worker may do better; anything else would fail there, too.
SECOND_CHANCE = {"WORKER_EVICTED", "WORKER_LOST", "WORKER_STALLED", "WORKER_BROKEN", "NOT_READY", "INTERNAL"}
# What else an image alone can fail of, and whether a retry can help.
_BY_REASON = {kind.reason: kind for kind in (DeviceOutOfMemory, DeadlineExceeded, WorkerEvicted)}
# As this module and the pool raise them.
_STATUS_BY_REASON = {
    "NO_WORKER": grpc.StatusCode.UNAVAILABLE,
    "WORKER_LOST": grpc.StatusCode.UNAVAILABLE,
    "WORKER_STALLED": grpc.StatusCode.UNAVAILABLE,
    "NOT_READY": grpc.StatusCode.UNAVAILABLE,
    "QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
}


@dataclass(frozen=True)
class Patience:
    """How long a call to a stage may take. `deadline` is the caller's, on the event loop's clock."""

    # Silence of a picture that is being made: a worker that hangs although its machine answers. One step of a full
    # batch of GLID-3-xl takes a minute or two without an accelerator.
    stall_timeout_s: float = 300.0
    # The whole call, its time in the worker's queue included.
    call_timeout_s: float = 4 * 3600.0
    deadline: float | None = None

    def timeout_s(self) -> float:
        """Of a call that begins now; raises DeadlineExceeded when the caller's has passed."""
        if self.deadline is None:
            return self.call_timeout_s
        left_s = self.deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded("the caller's deadline passed before the picture was done")
        return min(self.call_timeout_s, left_s)


class StageError(TriptychError):
    """What a call to a worker ended with; `violations` are of the stage's own request."""

    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
        reason: str,
        retry_after_s: float | None = None,
        violations: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.violations = violations or {}


@dataclass(frozen=True)
class Started:
    """The picture has been asked of a worker, for the `attempt`-th time."""

    worker: Worker
    attempt: int


@dataclass(frozen=True)
class Retrying:
    """The attempt failed, and another worker is to be asked."""

    error: TriptychError


async def make_picture(
    pool: Pool, job: Job, digest: str, patience: Patience
) -> AsyncGenerator[Started | Retrying | StageEvent]:
    """Yields what happens until the picture and its timing are there; closing it cancels the work.

    Raises NoWorker, DeadlineExceeded or StageError when the picture cannot be had.
    """
    tried: list[str] = []
    queue_until = asyncio.get_running_loop().time() + QUEUE_PATIENCE_S
    failure: TriptychError | None = None
    while True:
        try:
            worker = await pool.choose(digest, but=tried)
        except NoWorker:
            # That nobody else is there says less than what the one who was there failed of.
            if failure is not None:
                raise failure from None
            raise
        if failure is not None:
            yield Retrying(failure)
        yield Started(worker, len(tried) + 1)
        has_picture = False
        try:
            with pool.working(worker):
                async with aclosing(_attempt(pool, worker, job, patience)) as events:
                    async for event in events:
                        has_picture = has_picture or event.HasField("image")
                        yield event
            return
        except StageError as error:
            if has_picture:
                log.info("%s %s was lost after the picture: %s", pool.kind.worker, worker.address, error)
                return
            if error.reason == "QUEUE_FULL":
                await _wait_for_room(error, queue_until)
                continue
            tried.append(worker.address)
            if error.reason not in SECOND_CHANCE or len(tried) == MAX_ATTEMPTS:
                raise
            failure = error


async def _attempt(pool: Pool, worker: Worker, job: Job, patience: Patience) -> AsyncGenerator[StageEvent]:
    """The events of one picture from one worker; raises StageError."""
    where = f"{pool.kind.worker} {worker.address}"
    stream = pool.kind.start(worker.channel, job, patience.timeout_s())
    is_queued, has_picture = False, False
    try:
        while True:
            async with asyncio.timeout(None if is_queued else patience.stall_timeout_s):
                event = await stream.read()
            if event is None:
                break
            if problem := _find_fault(event, job, pool.kind, has_picture=has_picture):
                raise _broken(f"{where} was asked for image {job.index} and answered with {problem}")
            # A queue may well stand still for longer than a picture that is being made.
            is_queued = event.HasField("accepted") and event.accepted.queue_position > 0
            if event.HasField("failure"):
                raise _from_failure(event.failure, where)
            has_picture = has_picture or event.HasField("image")
            yield event
        if not has_picture:
            raise _broken(f"{where} ended without the picture")
    except TimeoutError:
        error = StageError(
            f"{where} has been silent for {patience.stall_timeout_s:g} s",
            reason="WORKER_STALLED",
            retry_after_s=5.0,
        )
        pool.distrust(worker, str(error))
        raise error from None
    except grpc.aio.AioRpcError as error:
        raised = from_rpc(error, where)
        if raised.reason == "WORKER_LOST":
            pool.distrust(worker, f"its call ended with {error.code().name}: {error.details()}")
        raise raised from None
    finally:
        stream.cancel()


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


def _from_failure(failure: StageEvent.ImageFailure, where: str) -> StageError:
    kind = _BY_REASON.get(failure.reason, TriptychError)
    return StageError(
        f"{where}: {failure.message}",
        status=kind.status,
        reason=failure.reason or kind.reason,
        retry_after_s=kind.retry_after_s,
    )


def from_rpc(error: grpc.aio.AioRpcError, where: str) -> StageError:
    """What a failed call to a worker means for the one who waits for its result."""
    details, code, text = read_details(error), error.code(), error.details() or ""
    if details.reason:
        return StageError(
            f"{where}: {text}",
            status=code,
            reason=details.reason,
            retry_after_s=details.retry_after_s,
            violations=dict(details.violations),
        )
    log.warning("%s: %s %s", where, code.name, text)
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return StageError(f"{where} did not end in time", status=code, reason="DEADLINE_EXCEEDED")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without our details it comes from gRPC itself.
            return StageError(f"{where}: the message is too large", status=code, reason="MESSAGE_TOO_LARGE")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return StageError(f"{where} went away", reason="WORKER_LOST", retry_after_s=1.0)
        case _:
            return StageError(
                f"{where} failed; see the gateway's log",
                status=grpc.StatusCode.INTERNAL,
                reason="WORKER_BROKEN",
            )


def as_recorded(error: RunError) -> StageError:
    """What an image failed of when only the record of it is left."""
    kind = _BY_REASON.get(error.reason)
    status = kind.status if kind else _STATUS_BY_REASON.get(error.reason, grpc.StatusCode.INTERNAL)
    retry_after_s = 1.0 if status is grpc.StatusCode.UNAVAILABLE else None
    return StageError(error.message, status=status, reason=error.reason, retry_after_s=retry_after_s)


async def _wait_for_room(error: StageError, until: float) -> None:
    """Sleeps until the worker may have room; raises the error when the patience has an end."""
    delay_s = error.retry_after_s or 1.0
    if asyncio.get_running_loop().time() + delay_s > until:
        raise error
    await asyncio.sleep(delay_s)
