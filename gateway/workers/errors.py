"""What a call to a worker ended with, as an error of ours: read from the call, from an event, or from the record of a run."""

import logging

import grpc

from services.errors import DeadlineExceeded, DeviceOutOfMemory, TriptychError, WorkerEvicted
from triptych.errors import read_details
from triptych.v1.pipeline_pb2 import RunError
from triptych.v1.stage_pb2 import StageEvent

log = logging.getLogger(__name__)

# What else an image alone can fail of, and whether a retry can help.
_BY_REASON = {kind.reason: kind for kind in (DeviceOutOfMemory, DeadlineExceeded, WorkerEvicted)}
# As this module and the pool raise them.
_STATUS_BY_REASON = {
    "NO_WORKER": grpc.StatusCode.UNAVAILABLE,
    "MODEL_GONE": grpc.StatusCode.UNAVAILABLE,
    "WORKER_LOST": grpc.StatusCode.UNAVAILABLE,
    "WORKER_STALLED": grpc.StatusCode.UNAVAILABLE,
    "NOT_READY": grpc.StatusCode.UNAVAILABLE,
    "QUEUE_FULL": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "MESSAGE_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "IMAGE_POISONED": grpc.StatusCode.INTERNAL,
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "IMAGE_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
}


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
        # Whether the picture waited in the worker's queue, or had not got there, and so cannot be the cause.
        self.is_in_queue = True


def from_failure(failure: StageEvent.ImageFailure, where: str) -> StageError:
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
