"""Turns tracing on where the environment names an exporter, as OpenTelemetry's SDK has it: OTEL_EXPORTER_OTLP_ENDPOINT.

OTEL_TRACES_EXPORTER (otlp, console, none), OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_TRACES_SAMPLER and OTEL_SDK_DISABLED work as in its specification.
"""

import logging
import os
import threading
import uuid
from typing import TYPE_CHECKING

from services.serving.tracing import spans
from triptych import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

# A collector that does not answer must not hold the end of a process up.
FLUSH_S = 1.5

_ON = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_provider: "TracerProvider | None" = None


def is_wanted() -> bool:
    """Whether the environment asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    return exporter != "none" and any(os.environ.get(name) for name in _ON)


def start_tracing(service: str, exporter: "SpanExporter | None" = None) -> None:
    """Sends the spans of this process on, where the environment asks for it, or to that `exporter`."""
    global _provider
    if exporter is None and not is_wanted():
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = exporter or _make_exporter()
    except ImportError as error:
        log.warning("no traces: %s is missing; install triptych-server[tracing]", error.name)
        return
    own = {"service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.name"] = os.environ.get("OTEL_SERVICE_NAME") or f"triptych-{service}"
    _provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    spans.install(_provider.get_tracer("triptych", __version__))
    log.info("traces are exported", extra={"event": "tracing_started"})


def stop_tracing() -> None:
    """Exports what is left, for as long as FLUSH_S."""
    global _provider
    provider, _provider = _provider, None
    spans.install(None)
    if provider is not None:
        # Exporters have timeouts and retries of their own, which are longer.
        flushing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


def _make_exporter() -> "SpanExporter":
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() or "otlp"
    if kind == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        # Standard output has the line that announces the address.
        return ConsoleSpanExporter(out=sys.stderr)
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]
            OTLPSpanExporter,
        )
    return OTLPSpanExporter()
