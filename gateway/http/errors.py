"""Errors in HTTP: a status for every gRPC status, and two shapes of body.

Our own routes answer {"error": {"reason", "message", "violations"}}, those of OpenAI's API in OpenAI's shape.
"""

import math
from http import HTTPStatus
from typing import Any

import grpc
from starlette.responses import JSONResponse

from services.errors import InvalidRequest, PermissionDenied, TriptychError
from services.serving.request_log import current_request

# As google.rpc.Code documents them.
_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# By the status: what OpenAI's API calls such an error.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class HttpError(TriptychError):
    """A request that HTTP itself has a status for: a wrong method, a body that is too large or comes too slowly."""

    def __init__(
        self, http_status: int, reason: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.reason = reason
        # The parameter to blame, for OpenAI's shape.
        self.param: str | None = None
        self.headers = headers or {}


def http_status(error: TriptychError) -> int:
    return error.http_status if isinstance(error, HttpError) else _STATUS.get(error.status, 500)


def headers_of(error: TriptychError) -> dict[str, str]:
    """When to come back, and whether: the `openai` package would repeat any 409, 429 and 5xx."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if http_status(error) == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is None:
        headers["x-should-retry"] = "false"
    else:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, round(error.retry_after_s * 1000)))
    return headers


def error_body(error: TriptychError) -> dict[str, Any]:
    """As our own routes answer."""
    violations = {error.field: error.description} if isinstance(error, InvalidRequest) else {}
    return {"error": {"reason": error.reason, "message": str(error), "violations": violations}}


def openai_body(error: TriptychError) -> dict[str, Any]:
    """As OpenAI's API answers; `param` is the field to blame, in the words of that API."""
    status = http_status(error)
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = error.param if isinstance(error, HttpError) else None
    if isinstance(error, InvalidRequest):
        param = error.field
    return {"error": {"message": str(error), "type": kind, "param": param, "code": error.reason.lower()}}


def to_response(error: TriptychError, *, is_openai: bool) -> JSONResponse:
    if is_openai and isinstance(error, PermissionDenied):
        # A key that is not known is a 401 there.
        error = HttpError(401, "INVALID_API_KEY", str(error))
    if (record := current_request()) is not None:
        record.reason = error.reason
    body = openai_body(error) if is_openai else error_body(error)
    return JSONResponse(body, http_status(error), headers_of(error))
