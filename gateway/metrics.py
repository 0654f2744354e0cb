"""Prometheus metrics of the gateway: runs by state, images by stage and outcome, healthy workers.

The stages tell of their own queues. Stages are named by their workers, as they name themselves there.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.journal.storage_audit import StorageAudit
from gateway.runs.manager import RunManager
from gateway.stages import STAGES, Stage, stage_of
from gateway.workers.pool import Pool
from triptych.v1.pipeline_pb2 import Event, RunState

UNDER_WAY = (
    RunState.RUN_STATE_QUEUED,
    RunState.RUN_STATE_RUNNING,
    RunState.RUN_STATE_AWAITING_SELECTION,
)
ENDS = (
    RunState.RUN_STATE_SUCCEEDED,
    RunState.RUN_STATE_PARTIALLY_SUCCEEDED,
    RunState.RUN_STATE_CANCELLED,
    RunState.RUN_STATE_FAILED,
)


class GatewayMetrics:
    """Of one gateway's process: what its own runs do, and the workers as it sees them."""

    def __init__(
        self, pools: Mapping[str, Pool], runs: RunManager, audit: StorageAudit | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "triptych_ended_runs", "Runs, by how they ended.", ["state"], registry=self.registry
        )
        self._images = Counter(
            "triptych_pipeline_images",
            "Pictures of runs, by how they ended; one that was made again elsewhere counts once.",
            ["stage", "outcome"],
            registry=self.registry,
        )
        for state in ENDS:
            self._ended.labels(_name(state))
        for stage in STAGES:
            for outcome in ("finished", "failed"):
                self._images.labels(stage.worker_name, outcome)
        self._watch(pools, runs)
        if audit is not None:
            missing = Gauge(
                "triptych_missing_pictures",
                "Pictures of the journal that the store lacks.",
                registry=self.registry,
            )
            missing.set_function(lambda: audit.differences.num_missing)
        runs.on_event = self.observe

    def observe(self, event: Event) -> None:
        """Takes note of what has just happened in a run."""
        match event.WhichOneof("kind"):
            case "image_ready":
                self._images.labels(stage_of(event.image_ready.image.stage).worker_name, "finished").inc()
            case "warning" if event.warning.given_up and (stage := _stage_of_image(event.warning.image)):
                self._images.labels(stage.worker_name, "failed").inc()
            case "finished":
                self._ended.labels(_name(event.finished.state)).inc()

    def _watch(self, pools: Mapping[str, Pool], runs: RunManager) -> None:
        states = Gauge(
            "triptych_runs", "Runs that have not ended, by state.", ["state"], registry=self.registry
        )
        for state in UNDER_WAY:
            states.labels(_name(state)).set_function(_count(runs, state))
        waiting = Gauge(
            "triptych_waiting_runs", "Runs that wait for their turn to begin.", registry=self.registry
        )
        waiting.set_function(lambda: runs.num_waiting)
        healthy = Gauge(
            "triptych_healthy_workers",
            "Workers that can be given work.",
            ["stage"],
            registry=self.registry,
        )
        waiting_images = Gauge(
            "triptych_waiting_images",
            "Pictures that wait at this gateway for a worker of the stage to have room.",
            ["stage"],
            registry=self.registry,
        )
        for stage in STAGES:
            healthy.labels(stage.worker_name).set_function(_healthy(pools[stage.name]))
            waiting_images.labels(stage.worker_name).set_function(_num_waiting(pools[stage.name]))


def _count(runs: RunManager, state: RunState.ValueType) -> Callable[[], float]:
    return lambda: runs.num_in(state)


def _healthy(pool: Pool) -> Callable[[], float]:
    return lambda: len(pool.healthy)


def _num_waiting(pool: Pool) -> Callable[[], float]:
    return lambda: pool.num_waiting


def _name(state: RunState.ValueType) -> str:
    return RunState.Name(state).removeprefix("RUN_STATE_").lower()


def _stage_of_image(name: str) -> Stage | None:
    """Of "runs/{id}/images/{stage}-{index}"; a warning may be about no image."""
    stage_name = name.rpartition("/")[2].rpartition("-")[0]
    return next((stage for stage in STAGES if stage.name == stage_name), None)
