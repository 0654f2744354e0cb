"""The state of a run, folded from its events: what is done, what was selected, what was given up, and what is left."""

from collections.abc import Iterable

from google.protobuf.message import Message

from triptych.progress import STAGE_NAMES
from triptych.v1.pipeline_pb2 import (
    Event,
    Image,
    RefineStage,
    Run,
    RunError,
    RunState as ProtoRunState,
)
from triptych.v1.stage_pb2 import Stage

# What an image is given up for when nobody wants it any more: no failure.
CANCELLED = "CANCELLED"
MIME_TYPE = "image/png"


def image_name(run: str, stage: Stage.ValueType, index: int) -> str:
    return f"{run}/images/{STAGE_NAMES[stage]}-{index}"


class RunState:
    """The state of a run as a pure fold of its events: `add` every one, in order; previews may be missing.

    A flow begins from it, so a flow that begins again, in this process or another, makes only what is missing.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        # Everything but its images.
        self._run = Run()
        # Finished images, without their files, and why others will not be made, by name.
        self.images: dict[str, Image] = {}
        self.given_up: dict[str, str] = {}
        # Names of those that went on, best first, of each stage that was ranked.
        self.ranked: dict[Stage.ValueType, list[str]] = {}
        self.selections: list[Event.Selected] = []
        # How often each image was asked for.
        self.attempts: dict[str, int] = {}
        # What failed since the run was accepted, or was selected from after its end.
        self.failures: list[RunError] = []
        # What was left undone when the run became idle stays undone: so many of the selections, and the plan.
        self.num_done_selections = 0
        self.is_plan_done = False
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        self._run.last_sequence = event.sequence
        match event.WhichOneof("kind"):
            case "state":
                self._change_state(event)
            case "stage_started":
                for index in event.stage_started.indexes:
                    name = image_name(self.name, event.stage_started.stage, index)
                    self.attempts[name] = self.attempts.get(name, 0) + 1
            case "image_ready":
                image = without_data(event.image_ready.image)
                self.images[image.name] = image
            case "ranked":
                self.ranked[event.ranked.stage] = list(event.ranked.selected)
                for score in event.ranked.scores:
                    self.images[score.image].clip_score = score.clip_score
            case "timing":
                self._run.timings.append(event.timing)
            case "selected":
                if is_finished(self.state):
                    self.failures = []
                if is_idle(self.state):
                    self._reopen(ProtoRunState.RUN_STATE_QUEUED)
                self.selections.append(event.selected)
            case "warning" if event.warning.given_up:
                self._give_up(event.warning)
            case "finished":
                self._enter(event.finished.state)
                self._run.end_time.CopyFrom(event.time)
                if event.finished.HasField("error"):
                    self._run.error.CopyFrom(event.finished.error)

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def state(self) -> ProtoRunState.ValueType:
        return self._run.state

    @property
    def has_work(self) -> bool:
        """Whether something may be left to do."""
        return not is_idle(self.state)

    def to_proto(self) -> Run:
        """The contract's message."""
        run = Run()
        run.CopyFrom(self._run)
        run.images.extend(self.images.values())
        return run

    @property
    def pending_selections(self) -> list[Event.Selected]:
        """Those whose images may be missing."""
        return self.selections[self.num_done_selections :]

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
            name == image_name(self.name, choice.model.stage, index)
            for selected in self.selections
            for choice in selected.choices
            for index in choice.indexes
        )

    def _change_state(self, event: Event) -> None:
        run, changed = self._run, event.state
        if not run.name:
            run.name = changed.run
            run.spec.CopyFrom(changed.spec)
            run.models.extend(changed.models)
            if changed.HasField("prompt_reading"):
                run.prompt_reading.CopyFrom(changed.prompt_reading)
            run.create_time.CopyFrom(event.time)
        self._enter(changed.state)
        if changed.state == ProtoRunState.RUN_STATE_RUNNING:
            if not run.HasField("start_time"):
                run.start_time.CopyFrom(event.time)
            self._reopen(changed.state)

    def _enter(self, state: ProtoRunState.ValueType) -> None:
        self._run.state = state
        if is_idle(state):
            self.num_done_selections = len(self.selections)
            self.is_plan_done = True

    def _reopen(self, state: ProtoRunState.ValueType) -> None:
        """There is something to do, where the run may have finished before."""
        self._run.state = state
        self._run.ClearField("end_time")
        self._run.ClearField("error")

    def _give_up(self, warning: Event.Warning) -> None:
        if warning.image:
            self.given_up[warning.image] = warning.reason
        if warning.reason != CANCELLED:
            self.failures.append(RunError(reason=warning.reason, message=warning.message))


def is_idle(state: ProtoRunState.ValueType) -> bool:
    """Whether nothing happens to a run in this state unless a caller asks for it."""
    return state == ProtoRunState.RUN_STATE_AWAITING_SELECTION or is_finished(state)


def is_finished(state: ProtoRunState.ValueType) -> bool:
    return state >= ProtoRunState.RUN_STATE_SUCCEEDED


def without_data(image: Image) -> Image:
    """A copy of an image without its file."""
    copy = Image()
    copy.CopyFrom(image)
    copy.ClearField("data")
    return copy


def mask_of(stage: Message) -> str:
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
