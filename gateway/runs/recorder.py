"""Records one run: every change becomes an event of its log.

It knows what happened and not why. All that is known follows from the events, so a record that is made anew from them
knows the same. Images are in the store before their event is published.
"""

from collections.abc import Callable, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration

from gateway.events.event_log import EventLog
from gateway.events.run_state import MIME_TYPE, RunState, image_name, is_finished
from gateway.stages import Job, Stage
from gateway.store.base import Store
from services.errors import NotFound, TriptychError
from services.serving.tracing.spans import span
from triptych.v1.pipeline_pb2 import (
    ChosenModel,
    Event,
    Image,
    ImageTiming,
    RunError,
    RunSpec,
    RunState as ProtoRunState,
)
from triptych.v1.stage_pb2 import ImageData, ImagePrompt, PromptReading, Stage as ProtoStage, StageEvent

# A picture of 256 tokens would fill the log with steps that nobody can see one by one.
MAX_PROGRESS_EVENTS = 64
# A client that sets no option of its own receives messages of up to 4 MiB: larger pictures do not travel in events.
MAX_INLINE_BYTES = 3 * 2**20


class RunRecorder:
    """The record of the run that `events` began, and that goes on from there; `write` has new ones written down."""

    def __init__(
        self,
        events: Sequence[Event],
        write: Callable[["RunRecorder", Event], None],
        store: Store,
        init_images: Mapping[str, Image] | None = None,
        *,
        traceparent: str = "",
    ) -> None:
        self.name = events[0].state.run
        self.run = RunState(events)
        self.log = EventLog(lambda event: write(self, event), events)
        # Of the work on it: the last that there was, until more begins.
        self.traceparent = traceparent
        self._store = store
        self._init_images = dict(init_images or {})
        # Of each stage's images the place in a worker's queue, and the wait in seconds where that is known.
        self._positions: dict[ProtoStage.ValueType, dict[int, tuple[int, float | None]]] = {}
        self._reported_position: dict[ProtoStage.ValueType, int] = {}
        self._noticed = {
            (event.warning.reason, event.warning.message) for event in events if event.HasField("warning")
        }
        if is_finished(self.run.state):
            self.log.close()

    @property
    def init_names(self) -> list[str]:
        """Names of the pictures that the run starts from, in order."""
        return list(self._init_images)

    def image_name(self, stage: Stage, index: int) -> str:
        return image_name(self.name, stage.number, index)

    def find_image(self, name: str) -> Image | None:
        """A finished picture, without its file."""
        return self.run.images.get(name)

    def find_init_image(self, name: str) -> Image | None:
        """A picture that the run starts from, without its file."""
        return self._init_images.get(name)

    async def read(self, name: str) -> ImageData:
        """A finished picture, or one that the run starts from, with its file. Raises NotFound."""
        image = self.run.images.get(name) or self._init_images.get(name)
        if image is None:
            raise NotFound(f"{self.name} has no finished image {name[:120]!r}")
        with span("store get", {"triptych.image": name}):
            data = await self._store.get(image.sha256)
        return ImageData(mime_type=image.mime_type, data=data, width=image.width, height=image.height)

    async def store_mask(self, mask: ImageData) -> None:
        """Stores the file of a mask, before the event that refers to it."""
        await self._store.put(mask.data)

    async def read_mask(self, sha256: str) -> ImageData:
        """The file of a stored mask. Raises NotFound."""
        return ImageData(mime_type=MIME_TYPE, data=await self._store.get(sha256))

    async def read_image_prompts(self, stored: Sequence[ImagePrompt]) -> tuple[ImagePrompt, ...]:
        """Image prompts with their files. Raises NotFound."""
        prompts = []
        for one in stored:
            prompt = ImagePrompt()
            prompt.CopyFrom(one)
            prompt.image.data = await self._store.get(one.image.sha256)
            prompt.image.ClearField("sha256")
            prompts.append(prompt)
        return tuple(prompts)

    def begin(self) -> None:
        """The run is carried out, for the first time or again."""
        if self.run.state != ProtoRunState.RUN_STATE_RUNNING:
            self._append(
                Event(state=Event.StateChanged(state=ProtoRunState.RUN_STATE_RUNNING, run=self.name))
            )

    def stage_started(self, stage: Stage, worker: str, attempt: int, index: int, parent: str) -> None:
        started = Event.StageStarted(
            stage=stage.number, worker=worker, attempt=attempt, indexes=[index], parent=parent
        )
        self._append(Event(stage_started=started))

    def queued_run(self, position: int, wait_s: float | None) -> None:
        """The run's place among those that wait to begin; 0 when it begins."""
        self._append(Event(queued=_queued(ProtoStage.STAGE_UNSPECIFIED, position, wait_s)))

    def queued(self, stage: Stage, index: int, position: int, wait_s: float | None = None) -> None:
        """An image's place in its worker's queue; the event has that of the run's first, when it changes."""
        positions = self._positions.setdefault(stage.number, {})
        if position:
            positions[index] = position, wait_s
        else:
            positions.pop(index, None)
        first, first_wait_s = min(positions.values(), key=lambda place: place[0], default=(0, None))
        if first != self._reported_position.get(stage.number, 0):
            self._reported_position[stage.number] = first
            self._append(Event(queued=_queued(stage.number, first, first_wait_s)))

    def progress(self, stage: Stage, progress: StageEvent.Progress) -> None:
        step, num_steps = progress.step, progress.num_steps
        if num_steps > MAX_PROGRESS_EVENTS:
            share = MAX_PROGRESS_EVENTS / num_steps
            if int(step * share) == int((step - 1) * share):
                return
        progress_event = Event.ImageProgress(
            stage=stage.number, index=progress.index, step=step, num_steps=num_steps
        )
        self._append(Event(progress=progress_event))

    def preview(self, stage: Stage, preview: StageEvent.Preview) -> None:
        if len(preview.image.data) > MAX_INLINE_BYTES:
            return
        preview_event = Event.ImagePreview(
            stage=stage.number,
            index=preview.index,
            step=preview.step,
            num_steps=preview.num_steps,
            image=preview.image,
        )
        self._append(Event(preview=preview_event))

    async def image_ready(
        self, stage: Stage, job: Job, picture: ImageData, model: ChosenModel, parent: str
    ) -> Image:
        """Stores the finished image, then publishes it. Raises the store's errors."""
        image = Image(
            name=self.image_name(stage, job.index),
            parent=parent,
            stage=stage.number,
            index=job.index,
            seed=job.seed,
            width=picture.width,
            height=picture.height,
            mime_type=picture.mime_type or "image/png",
            sha256=await self._put(job, picture),
            model_name=model.name,
            model_digest=model.digest,
        )
        self._append(Event(image_ready=Event.ImageReady(image=image)))
        return image

    def timing(self, stage: Stage, timing: StageEvent.Timing, waited_s: float) -> None:
        """`waited_s` is what the gateway waited for the picture; what the stage cannot account for was transfer."""
        image_timing = ImageTiming(
            image=self.image_name(stage, timing.index),
            stage=stage.number,
            queue=timing.queue,
            batch_wait=timing.batch_wait,
            compute=timing.compute,
            encode=timing.encode,
        )
        known = (timing.queue, timing.batch_wait, timing.compute, timing.encode)
        transfer_ns = int(waited_s * 1e9) - sum(part.ToNanoseconds() for part in known)
        transfer = Duration()
        transfer.FromNanoseconds(max(0, transfer_ns))
        image_timing.transfer.CopyFrom(transfer)
        self._append(Event(timing=image_timing))

    def ranked(self, stage: Stage, scores: Sequence[tuple[Image, float]], selected: Sequence[Image]) -> None:
        """`scores` best first."""
        ranked = Event.Ranked(
            stage=stage.number,
            scores=[Event.Ranked.Score(image=image.name, clip_score=score) for image, score in scores],
            selected=[image.name for image in selected],
        )
        self._append(Event(ranked=ranked))

    def selected(self, selected: Event.Selected) -> None:
        """Images are taken to a stage by hand."""
        self.log.reopen()
        self._append(Event(selected=selected))

    def notice(self, reason: str, message: str) -> None:
        """A part of the request had no effect; published once, for any number of images."""
        if (reason, message) not in self._noticed:
            self._noticed.add((reason, message))
            self.warn(reason, message)

    async def _put(self, job: Job, picture: ImageData) -> str:
        with span("store put", {"triptych.image": job.name}):
            if job.spool.path is not None:
                return await self._store.put_file(job.spool.path)
            return await self._store.put(picture.data)

    def warn(self, reason: str, message: str, image: str = "", *, given_up: bool = False) -> None:
        """Something went wrong; `given_up`: what it is about will not be made."""
        warning = Event.Warning(reason=reason, message=message, image=image, given_up=given_up)
        self._append(Event(warning=warning))

    def await_selection(self, next_stage: Stage, candidates: Sequence[Image]) -> None:
        """The run waits for a selection."""
        required = Event.SelectionRequired(
            next_stage=next_stage.number, candidates=[image.name for image in candidates]
        )
        self._append(Event(selection_required=required))
        state = ProtoRunState.RUN_STATE_AWAITING_SELECTION
        self._append(Event(state=Event.StateChanged(state=state, run=self.name)))

    def finish(self, state: ProtoRunState.ValueType, error: TriptychError | None) -> None:
        """The last event, unless images are selected again."""
        finished = Event.Finished(state=state)
        if error is not None:
            finished.error.CopyFrom(RunError(reason=error.reason, message=str(error)))
        self._append(Event(finished=finished))
        self.log.close()

    def _append(self, event: Event) -> None:
        self.log.assign_sequence(event)
        self.run.add(event)
        # The last, so that what is written down with the event is the run as it stands then.
        self.log.append(event)


def _queued(stage: ProtoStage.ValueType, position: int, wait_s: float | None) -> Event.Queued:
    queued = Event.Queued(stage=stage, position=position)
    if wait_s is not None:
        queued.estimated_wait.FromMilliseconds(round(wait_s * 1e3))
    return queued


def first_event(
    name: str, spec: RunSpec, models: Sequence[ChosenModel], reading: PromptReading | None = None
) -> Event:
    """The first event of a run: it has the whole spec."""
    state = Event.StateChanged(
        state=ProtoRunState.RUN_STATE_QUEUED, run=name, spec=spec, models=models, prompt_reading=reading
    )
    event = Event(sequence=1, state=state)
    event.time.GetCurrentTime()
    return event
