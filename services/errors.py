"""Errors a caller can act on, each with its gRPC status and machine-readable reason.

TriptychError
├── InvalidRequest      INVALID_ARGUMENT    a field that cannot be served; names the field
│   └── ImageTooLarge   INVALID_ARGUMENT    a picture beyond the limits, refused before it is decoded
├── QueueFull           RESOURCE_EXHAUSTED  come back later
│   └── RateLimited     RESOURCE_EXHAUSTED  the caller's own share is used up; come back later
├── NoWorker            UNAVAILABLE         nobody serves that stage or model now
├── WorkerEvicted       UNAVAILABLE         this process is going away
├── DeviceOutOfMemory   RESOURCE_EXHAUSTED  the device cannot hold this job
├── Unauthenticated     UNAUTHENTICATED     no valid token
├── PermissionDenied    PERMISSION_DENIED   a token that this gateway does not know
├── NotFound            NOT_FOUND
├── AlreadyExists       ALREADY_EXISTS      a request_id used before with another body
├── RunUnderWay         FAILED_PRECONDITION a run that must have finished first
├── RunNotQueued        FAILED_PRECONDITION a run that does not wait to begin
└── ModelError          FAILED_PRECONDITION a model folder or checkpoint that cannot be used
"""

import grpc


class TriptychError(Exception):
    """Base of every error this project raises on purpose; its text is shown to the caller."""

    status = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    # Seconds after which a retry can help; None: a retry cannot help.
    retry_after_s: float | None = None


class InvalidRequest(TriptychError):
    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ImageTooLarge(InvalidRequest):
    reason = "IMAGE_TOO_LARGE"


class QueueFull(TriptychError):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(QueueFull):
    reason = "RATE_LIMITED"


class NoWorker(TriptychError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "NO_WORKER"
    retry_after_s = 5.0


class NotReady(TriptychError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "NOT_READY"
    retry_after_s = 2.0


class WorkerEvicted(TriptychError):
    status = grpc.StatusCode.UNAVAILABLE
    reason = "WORKER_EVICTED"
    retry_after_s = 1.0


class DeviceOutOfMemory(TriptychError):
    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DEVICE_OOM"


class DeadlineExceeded(TriptychError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(TriptychError):
    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "TOKEN_MISSING"


class PermissionDenied(TriptychError):
    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "TOKEN_UNKNOWN"


class NotFound(TriptychError):
    status = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(TriptychError):
    status = grpc.StatusCode.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"


class RunUnderWay(TriptychError):
    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "RUN_UNDER_WAY"


class RunNotQueued(TriptychError):
    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "RUN_NOT_QUEUED"


class ModelError(TriptychError):
    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_ERROR"
