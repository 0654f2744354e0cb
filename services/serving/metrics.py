"""Prometheus metrics of a stage: images made and failed, how long they took, how many wait and run.

The numbers are read where they are kept; nothing is counted twice.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from services.engine.events import Event, Failed, Finished
from services.errors import TriptychError

log = logging.getLogger(__name__)

# From a picture of the built-in models to one of GLID-3-xl on processors.
SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class PortInUse(TriptychError):
    reason = "ADDRESS_IN_USE"


class StageMetrics:
    """Of one stage's process."""

    def __init__(self, stage: str) -> None:
        self.registry = CollectorRegistry()
        self._images = Counter(
            "triptych_images", "Pictures, by how they ended.", ["stage", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "triptych_image_seconds",
            "Where the time of a finished picture went.",
            ["stage", "part"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stage = stage
        for outcome in ("finished", "failed"):
            self._images.labels(stage, outcome)

    def observe(self, event: Event) -> None:
        """Takes note of a picture that is done."""
        match event:
            case Finished(_, _, timing):
                self._images.labels(self._stage, "finished").inc()
                for part in ("queue", "batch_wait", "compute", "encode"):
                    self._seconds.labels(self._stage, part).observe(getattr(timing, f"{part}_s"))
            case Failed():
                self._images.labels(self._stage, "failed").inc()

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Reads each gauge, given as its name, its help and its reader, at each scrape."""
        for name, (says, read) in gauges.items():
            gauge = Gauge(name, says, ["stage"], registry=self.registry)
            gauge.labels(self._stage).set_function(read)


@contextmanager
def serving_metrics(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[int | None]:
    """Answers GET /metrics inside the block and gives the port; without one, nothing. Raises PortInUse."""
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError:
        raise PortInUse(
            f"cannot listen on {host}:{port} for metrics: the port is in use or the address is not of this machine; "
            "choose another --metrics-port"
        ) from None
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
