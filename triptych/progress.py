"""Follows a run's events: how far each picture of each stage is, and how long each stage took.

It draws nothing: `display` shows what it knows.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from triptych.stages import STAGES, StageInfo
from triptych.v1 import stage_pb2
from triptych.v1.pipeline_pb2 import Event, RunSpec

STAGE_NAMES: Mapping[int, str] = {stage.number: stage.name for stage in STAGES}


@dataclass(frozen=True)
class Waiting:
    """A place in a queue, from 1, and how long that may take, where the gateway has something to measure by."""

    position: int
    estimated_s: float | None = None

    def __str__(self) -> str:
        about = "" if self.estimated_s is None else f", about {self.estimated_s:.0f} s"
        return f"number {self.position} in the queue{about}"


@dataclass
class StageProgress:
    """One stage of a run. `fractions` maps an image's index to the share of its steps that are done."""

    num_expected: int
    fractions: dict[int, float] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    waiting: Waiting | None = None
    started_s: float | None = None
    ended_s: float | None = None
    first_image_s: float | None = None

    def elapsed_s(self, now_s: float) -> float:
        """From the stage's start to its last picture, or until now while pictures are missing."""
        if self.started_s is None:
            return 0.0
        is_done = self.ended_s is not None and len(self.finished) >= self.num_expected
        return (self.ended_s if is_done and self.ended_s is not None else now_s) - self.started_s


class RunProgress:
    """The state of all stages that a spec asks for, in order."""

    def __init__(self, spec: RunSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages = {name: StageProgress(count) for name, count in expected_counts(spec).items()}
        # For its turn to begin, behind other runs.
        self.waiting: Waiting | None = None

    def update(self, event: Event) -> None:
        """Takes in one event; stages that the spec did not name are added as they appear."""
        kind = event.WhichOneof("kind")
        if kind == "stage_started":
            stage = self.stage(event.stage_started.stage)
            stage.started_s = self.clock() if stage.started_s is None else stage.started_s
            for index in event.stage_started.indexes:
                stage.fractions.setdefault(index, 0.0)
        elif kind == "queued":
            self._queued(event.queued)
        elif kind == "progress":
            step = event.progress
            self.stage(step.stage).fractions[step.index] = step.step / max(1, step.num_steps)
        elif kind == "image_ready":
            image = event.image_ready.image
            stage = self.stage(image.stage)
            stage.fractions[image.index] = 1.0
            stage.finished.add(image.index)
            stage.ended_s = self.clock()
            stage.started_s = stage.ended_s if stage.started_s is None else stage.started_s
            stage.first_image_s = stage.ended_s if stage.first_image_s is None else stage.first_image_s
        elif kind == "selected":
            for choice in event.selected.choices:
                self.stage(choice.model.stage).num_expected += len(choice.indexes)

    def _queued(self, queued: Event.Queued) -> None:
        estimated_s = None
        if queued.HasField("estimated_wait"):
            estimated_s = queued.estimated_wait.ToNanoseconds() / 1e9
        waiting = Waiting(queued.position, estimated_s) if queued.position else None
        if queued.stage == stage_pb2.STAGE_UNSPECIFIED:
            self.waiting = waiting
        else:
            self.stage(queued.stage).waiting = waiting

    def stage(self, stage: int) -> StageProgress:
        return self.stages.setdefault(STAGE_NAMES.get(stage, "other"), StageProgress(0))


def expected_counts(spec: RunSpec) -> dict[str, int]:
    """How many pictures each stage of the spec makes when nothing fails."""
    counts: dict[str, int] = {}
    num_images = len(spec.init_images) or 1
    before: StageInfo | None = None
    for stage in STAGES:
        if not spec.HasField(stage.name):  # type: ignore[arg-type]  # fields of the message by name
            continue
        if spec.HasField("manual") and stage is not STAGES[0]:
            # What is made of them is decided on the way.
            break
        if before is not None:
            num_images = best(num_images, getattr(spec.automatic, f"top_k_after_{before.name}", 0))
        num_images *= getattr(spec, stage.name).count if stage.draws else 1
        counts[stage.name] = num_images
        before = stage
    return counts


def best(num_images: int, top_k: int) -> int:
    """How many of `num_images` go on; a top_k of 0 takes all."""
    return min(num_images, top_k) if top_k else num_images
