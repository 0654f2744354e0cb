"""Spans of OpenTelemetry, through its API. Until `install` is called nothing of it is imported and every span is empty.

Names and attributes follow the semantic conventions for RPC and HTTP (1.45, stable) and for GenAI (in development). Prompts
and pictures are in no attribute. A trace context is a W3C `traceparent` everywhere outside of this module.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.errors import TriptychError

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Attributes = Mapping[str, str | int | float | bool]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

_tracer: "Tracer | None" = None


def install(tracer: "Tracer | None") -> None:
    """Spans go to this tracer from now on; None: tracing is off."""
    global _tracer
    _tracer = tracer


def is_on() -> bool:
    return _tracer is not None


class Span:
    """A span that is under way; an empty one does nothing."""

    __slots__ = ("_span",)

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def __bool__(self) -> bool:
        return self._span is not None

    @property
    def traceparent(self) -> str:
        """Its context, to be sent or stored; "" for an empty one."""
        if self._span is None:
            return ""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def set(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        if self._span is not None:
            self._span.update_name(name)

    def fail(self, error_type: str) -> None:
        """Marks it as failed; `error_type` is a status code or one of our reasons, and no text."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_attribute("error.type", error_type)
            self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        if self._span is not None:
            self._span.end()


NO_SPAN = Span()


def start_span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: str = "internal",
    parent: str | None = None,
    links: Sequence[str] = (),
    start_ns: int | None = None,
) -> Span:
    """A span that the caller ends. `parent`: a traceparent, "" for none; None: the current span. `kind`: as in the API."""
    if _tracer is None:
        return NO_SPAN
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, set_span_in_context

    context = None
    if parent is not None:
        remote = _to_context(parent)
        context = set_span_in_context(NonRecordingSpan(remote), Context()) if remote else Context()
    found = [Link(one) for text in links if (one := _to_context(text)) is not None]
    span = _tracer.start_span(
        name, context, SpanKind[kind.upper()], attributes=attributes, links=found, start_time=start_ns
    )
    return Span(span)


@contextmanager
def use(span: Span) -> Iterator[None]:
    """It is the current span inside the block, also of tasks that begin there."""
    if span._span is None:
        yield
        return
    from opentelemetry import context, trace

    token = context.attach(trace.set_span_in_context(span._span))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: str = "internal",
    parent: str | None = None,
    links: Sequence[str] = (),
) -> Iterator[Span]:
    """A span that is current inside the block and fails with what is raised there."""
    if _tracer is None:
        yield NO_SPAN
        return
    made = start_span(name, attributes, kind=kind, parent=parent, links=links)
    try:
        with use(made):
            yield made
    except BaseException as error:
        # Its text may quote a caller. A cancellation and the end of a generator are recorded, and go on.
        made.fail(error.reason if isinstance(error, TriptychError) else type(error).__name__)
        raise
    finally:
        made.end()


def record_span(
    name: str, start_ns: int, end_ns: int | None = None, attributes: Attributes | None = None
) -> None:
    """A span of the current one that is over: from and to nanoseconds since 1970, now by default."""
    if _tracer is None:
        return
    made = start_span(name, attributes, start_ns=start_ns)
    made._span.end(end_ns or time.time_ns())


def current_traceparent() -> str:
    """The context of the current span; "" where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    current = trace.get_current_span()
    return Span(current).traceparent if current.get_span_context().is_valid else ""


def trace_id_of(traceparent: str | None) -> str:
    """The trace of a W3C `traceparent` header; "" where there is none, or it is none."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match[1] if match and match[1].strip("0") and match[2].strip("0") else ""


def _to_context(traceparent: str) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    context = SpanContext(int(match[1], 16), int(match[2], 16), True, TraceFlags(int(match[3], 16) & 1))
    return context if context.is_valid else None
