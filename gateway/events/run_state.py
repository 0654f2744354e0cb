"""The state of a run, computed from its events: images, selections, failures.

It is all that a flow begins from, so a flow that begins again, in this process or another, makes only what is
missing.
"""

from collections.abc import Iterable

from triptych.v1.pipeline_pb2 import (
    Event,
    GenerateStage,
    Image,
    RefineStage,
    RunError,
    RunState,
    UpscaleStage,
)
from triptych.v1.stage_pb2 import Stage

STAGE_NAMES = {Stage.STAGE_GENERATE: "generate", Stage.STAGE_REFINE: "refine", Stage.STAGE_UPSCALE: "upscale"}
# What an image is given up for when nobody wants it any more: no failure.
CANCELLED = "CANCELLED"
MIME_TYPE = "image/png"


def image_name(run: str, stage: Stage.ValueType, index: int) -> str:
    return f"{run}/images/{STAGE_NAMES[stage]}-{index}"


class History:
    """`add` every event of a run, in order; previews may be missing."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        # Finished pictures, without their files, and why others will not be made, by name.
        self.images: dict[str, Image] = {}
        self.given_up: dict[str, str] = {}
        # Names of those that went on, best first, of each stage that was ranked.
        self.ranked: dict[Stage.ValueType, list[str]] = {}
        self.selections: list[Event.Selected] = []
        # How often each picture was asked for.
        self.attempts: dict[str, int] = {}
        # What failed since the run was accepted, or was taken up again after its end.
        self.failures: list[RunError] = []
        self.state: RunState.ValueType = RunState.RUN_STATE_QUEUED
        # Whether something may be left to do; not where the run has finished or waits to be given images. What was
        # left undone by then stays undone: so many of the selections are done with, and the plan.
        self.is_open = True
        self.num_settled = 0
        self.is_plan_settled = False
        # The run's name.
        self.run = ""
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        match event.WhichOneof("kind"):
            case "state":
                self.run = event.state.run or self.run
                self._enter(event.state.state)
            case "stage_started":
                for index in event.stage_started.indexes:
                    name = image_name(self.run, event.stage_started.stage, index)
                    self.attempts[name] = self.attempts.get(name, 0) + 1
            case "image_ready":
                image = Image()
                image.CopyFrom(event.image_ready.image)
                image.ClearField("data")
                self.images[image.name] = image
            case "ranked":
                self.ranked[event.ranked.stage] = list(event.ranked.selected)
                for score in event.ranked.scores:
                    self.images[score.image].clip_score = score.clip_score
            case "selected":
                if self.state >= RunState.RUN_STATE_SUCCEEDED:
                    self.failures = []
                self.selections.append(event.selected)
                self.is_open = True
            case "warning" if event.warning.given_up:
                self._give_up(event.warning)
            case "finished":
                self._enter(event.finished.state)

    @property
    def open_selections(self) -> list[Event.Selected]:
        """Those whose pictures may be missing."""
        return self.selections[self.num_settled :]

    def find_selection(self, request_id: str) -> Event.Selected | None:
        """What this request_id has selected already."""
        if not request_id:
            return None
        return next((one for one in self.selections if one.request_id == request_id), None)

    def next_index(self, stage: Stage.ValueType, num_planned: int) -> int:
        """The first index of the stage that no picture has and none will have."""
        taken = [
            index + 1
            for selected in self.selections
            for choice in selected.choices
            if choice.model.stage == stage
            for index in choice.indexes
        ]
        return max([num_planned, *taken])

    def is_selected(self, name: str) -> bool:
        """Whether the image of that name was to be made by a selection."""
        return any(
            name == image_name(self.run, choice.model.stage, index)
            for selected in self.selections
            for choice in selected.choices
            for index in choice.indexes
        )

    def _enter(self, state: RunState.ValueType) -> None:
        self.state = state
        self.is_open = state in (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING)
        if not self.is_open:
            self.num_settled = len(self.selections)
            self.is_plan_settled = True

    def _give_up(self, warning: Event.Warning) -> None:
        if warning.image:
            self.given_up[warning.image] = warning.reason
        if warning.reason != CANCELLED:
            self.failures.append(RunError(reason=warning.reason, message=warning.message))


def mask_of(stage: RefineStage | UpscaleStage | GenerateStage) -> str:
    """The sha256 of a stage's mask; "" for none."""
    return stage.mask.sha256 if isinstance(stage, RefineStage) else ""


def attachments_in_event(event: Event, run: str) -> list[Image]:
    """The masks and image prompts that this event adds to a run, as images of it, so that the journal keeps their files."""
    stages = [event.state.spec.refine] if event.HasField("state") else []
    if event.HasField("selected"):
        stages += [choice.selection.refine for choice in event.selected.choices]
    hashes = {stage.mask.sha256 for stage in stages if stage.mask.sha256}
    masks = [
        Image(name=f"{run}/images/mask-{sha256[:16]}", mime_type=MIME_TYPE, sha256=sha256)
        for sha256 in sorted(hashes)
    ]
    prompts = {
        one.image.sha256: one.image for one in event.state.spec.generate.image_prompts if one.image.sha256
    }
    return masks + [
        Image(
            name=f"{run}/images/prompt-{sha256[:16]}",
            mime_type=image.mime_type,
            sha256=sha256,
            width=image.width,
            height=image.height,
        )
        for sha256, image in sorted(prompts.items())
    ]
