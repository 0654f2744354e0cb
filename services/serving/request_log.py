"""The outcome of each request, for both APIs: a log line, and rate, errors and duration for Prometheus.

Prompts and pictures are in neither. A request that is refused for who sent it is a warning, so that it can be found.
"""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.serving.tracing import spans
from services.serving.tracing.spans import trace_id_of

log = logging.getLogger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
REFUSALS = {"UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403", "421"}
# Another caller's run is not found, so that nobody learns that there is one. For the operator it is a refusal.
OTHERS_RUN = "OTHERS_RUN"
NOT_FOUND = {"NOT_FOUND", "404"}
# Asked many times a minute: by probes, and by every gateway for what its workers serve.
QUIET = re.compile(r"/grpc\.health\.|(\w+ )?/health$|/grpc\.reflection\.|/[\w.]+Service/GetModel$")
# Failures of ours; those of callers do not make a span failed.
SERVER_ERRORS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


@dataclass
class RequestRecord:
    """One request of either API, filled in while it is served."""

    api: str
    method: str
    peer: str = ""
    caller: str = ""
    code: str = ""
    reason: str = ""
    # Of a refused request: whose token it was, or is said to be; and the run of another caller that it was about.
    claimed: str = ""
    others_run: str = ""
    # As the caller sent it, or that of our span; stages are sent the same.
    traceparent: str = ""
    # A poll, such as that of a page that is open: it is not logged.
    is_poll: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def trace_id(self) -> str:
        return trace_id_of(self.traceparent)


_current: ContextVar[RequestRecord | None] = ContextVar("request", default=None)


def current_request() -> RequestRecord | None:
    """The request that is being served; runs that it begins keep it."""
    return _current.get()


def current_traceparent() -> str:
    """The trace context of the current work: that of its span, or what the caller of the current request sent."""
    if traceparent := spans.current_traceparent():
        return traceparent
    record = _current.get()
    return record.traceparent if record is not None and record.trace_id else ""


def _refused_to(record: RequestRecord) -> str:
    who = record.caller or record.claimed
    about = f", about {record.others_run}" if record.others_run else ""
    return f"to {who} at {record.peer}{about}" if who else f"to {record.peer}{about}"


class RequestLog:
    """Shared by both APIs of a process."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._requests = Counter(
            "triptych_requests", "Requests, by how they ended.", ["api", "method", "code"], registry=registry
        )
        self._seconds = Histogram(
            "triptych_request_seconds",
            "How long requests took; of a stream, until its end.",
            ["api", "method"],
            buckets=SECONDS,
            registry=registry,
        )

    @contextmanager
    def recording(self, record: RequestRecord) -> Iterator[RequestRecord]:
        """Logs and counts the request at the end of the block; the handler fills the record in."""
        token = _current.set(record)
        span = spans.NO_SPAN if QUIET.match(record.method) else _start_span(record)
        if span:
            record.traceparent = span.traceparent
        try:
            with spans.use(span):
                yield record
        except BaseException as error:
            record.code = record.code or (
                "CANCELLED" if type(error).__name__ == "CancelledError" else "INTERNAL"
            )
            raise
        finally:
            self._finish(record)
            _end_span(span, record)
            _current.reset(token)

    def _finish(self, record: RequestRecord) -> None:
        took = time.monotonic() - record.began
        self._requests.labels(record.api, record.method, record.code).inc()
        exemplar = {"trace_id": record.trace_id} if record.trace_id else None
        self._seconds.labels(record.api, record.method).observe(took, exemplar)
        is_others = bool(record.others_run) and record.code in NOT_FOUND
        is_refused = record.code in REFUSALS or is_others
        reason = OTHERS_RUN if is_others else record.reason
        if (record.is_poll or QUIET.match(record.method)) and not is_refused:
            return
        log.log(
            logging.WARNING if is_refused else logging.INFO,
            "%s %s %s: %s %s in %.3f s%s",
            "refused" if is_refused else "served",
            record.api,
            record.method,
            record.code,
            f"to {record.caller or record.peer}" if not is_refused else _refused_to(record),
            took,
            f" ({reason})" if reason else "",
            extra={
                "event": "request_refused" if is_refused else "request",
                "api": record.api,
                "method": record.method,
                "code": record.code,
                "reason": reason,
                "peer": record.peer,
                "caller": record.caller,
                "claimed": record.claimed,
                "run": record.others_run,
                "trace_id": record.trace_id,
                "duration_s": round(took, 4),
            },
        )


def _start_span(record: RequestRecord) -> spans.Span:
    attributes = {"client.address": _host_of(record.peer)}
    if record.api == "grpc":
        method = record.method.lstrip("/")
        attributes |= {"rpc.system.name": "grpc", "rpc.method": method}
    else:
        method = "HTTP"
    return spans.start_span(method, attributes, kind="server", parent=record.traceparent)


def _end_span(span: spans.Span, record: RequestRecord) -> None:
    if not span:
        return
    if record.api == "grpc":
        span.set({"rpc.response.status_code": record.code})
        if record.code in SERVER_ERRORS:
            span.fail(record.reason or record.code)
    else:
        method, _, route = record.method.partition(" ")
        span.rename(record.method if route else "HTTP")
        span.set({"http.request.method": method} | ({"http.route": route} if route else {}))
        if record.code.isdecimal():
            span.set({"http.response.status_code": int(record.code)})
        if record.code >= "500" or not record.code.isdecimal():
            span.fail(record.reason or record.code)
    span.end()


def _host_of(peer: str) -> str:
    """Of "ipv4:10.0.0.7:53122" and "10.0.0.7:53122"."""
    host = peer.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]")
