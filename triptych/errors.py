"""What goes wrong between a caller and a gateway, as types. Knows gRPC's statuses and the details that travel in them.

CallError              any other status; `reason` names it
├── InvalidRequest     a field cannot be served; `violations` has which and why
├── NotFound           no such run or image here
│   └── ImageLost      the run is here, but that picture's file is not any more, or is damaged there
├── RequestIdReused    the request_id was used before with another spec
├── Busy               the queue is full; come back after `retry_after_s`
├── NoWorker           nobody serves a stage of the run now
├── Unauthenticated    the gateway wants to know who calls
├── PermissionDenied   the gateway knows who calls, and refuses
├── DeadlineExceeded   the time that the caller gave is over
├── Unreachable        nobody answers at the address, or not any more
├── DamagedImage       a picture that arrived is not the one that was sent
└── RunFailed          the run made no picture of its last stage; `reason` has the cause
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from triptych.addresses import check_address, proxy_for
from triptych.v1.pipeline_pb2 import RunError

ERROR_DOMAIN = "triptych"

# What a cut connection looks like from here, where no server attached a reason; HTTP/2 resets are INTERNAL.
_BROKEN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}
# From a gateway that is stopping or starting.
_PASSING_REASONS = {"WORKER_EVICTED", "NOT_READY"}


@dataclass(frozen=True)
class ErrorDetails:
    """What the details of a status say; all empty when the server attached none."""

    reason: str = ""
    retry_after_s: float | None = None
    # Descriptions by the path of the field.
    violations: Mapping[str, str] = field(default_factory=dict)


class CallError(Exception):
    """A call failed; its text is the server's own. `retry_after_s` is None where a retry cannot help."""

    def __init__(self, message: str, code: grpc.StatusCode, details: ErrorDetails) -> None:
        super().__init__(message)
        self.code = code
        self.reason = details.reason or code.name
        self.retry_after_s = details.retry_after_s
        self.violations = dict(details.violations)
        # Whether the connection broke; and whether, for this or another passing reason, the same call may succeed.
        self.is_cut = not details.reason and code in _BROKEN
        self.is_broken_off = self.is_cut or details.reason in _PASSING_REASONS
        # Whether the gateway had never answered this client before.
        self.is_first_contact = False


class InvalidRequest(CallError):
    pass


class NotFound(CallError):
    pass


class ImageLost(NotFound):
    pass


class RequestIdReused(CallError):
    pass


class Busy(CallError):
    pass


class NoWorker(CallError):
    pass


class Unauthenticated(CallError):
    pass


class PermissionDenied(CallError):
    pass


class DeadlineExceeded(CallError):
    pass


class Unreachable(CallError):
    pass


class DamagedImage(CallError):
    pass


class RunFailed(CallError):
    pass


_BY_REASON = {
    "QUEUE_FULL": Busy,
    "RATE_LIMITED": Busy,
    "NO_WORKER": NoWorker,
    "IMAGE_EXPIRED": ImageLost,
    "IMAGE_CORRUPTED": ImageLost,
    "REQUEST_ID_REUSED": RequestIdReused,
}
_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def read_details(error: grpc.aio.AioRpcError) -> ErrorDetails:
    """Reads ErrorInfo, RetryInfo and BadRequest; details that do not parse count as none."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the three methods of a Call it reads
    except ValueError:  # the details contradict the status: not ours
        status = None
    if status is None:
        return ErrorDetails()
    reason, retry_after_s, violations = "", None, {}
    for packed in status.details:
        info, retry, bad = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(),
        )
        if packed.Unpack(info) and info.domain == ERROR_DOMAIN:
            reason = info.reason
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif packed.Unpack(bad):
            violations = {violation.field: violation.description for violation in bad.field_violations}
    return ErrorDetails(reason, retry_after_s, violations)


def to_call_error(error: grpc.aio.AioRpcError, address: str) -> CallError:
    """The typed error of a failed call to `address`."""
    details, code, message = read_details(error), error.code(), error.details() or error.code().name
    if code == grpc.StatusCode.UNAVAILABLE and not details.reason:
        proxy = proxy_for(check_address(address))
        tried = f" through the proxy {proxy}; no_proxy=HOST goes without it" if proxy else ""
        message = (
            f"no gateway answers at {address}{tried}; start one with `triptych serve gateway` ({message})"
        )
        return Unreachable(message, code, details)
    kind = _BY_REASON.get(details.reason) or _BY_CODE.get(code) or CallError
    return kind(message, code, details)


def to_run_error(error: RunError, status: CallError | None = None) -> CallError:
    """The typed error of a run that failed; `status` is that of the call that followed the run, if any."""
    details = ErrorDetails(error.reason or "UNKNOWN", status.retry_after_s if status else None)
    kind = _BY_REASON.get(error.reason, RunFailed)
    code = status.code if status else grpc.StatusCode.UNKNOWN
    return kind(error.message or "the gateway gave no reason", code, details)
