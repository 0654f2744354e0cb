"""What is known of one run: its state, its events, its pictures. Whatever happens in a run is said here, once.

It knows what happened and not why. A journal would keep the events and a store the files; today both are in memory.
"""

import hashlib
from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from gateway.event_log import EventLog
from gateway.stages import Job, StageKind
from services.errors import TriptychError
from triptych.v1.pipeline_pb2 import Event, Image, ImageTiming, Run, RunError, RunSpec, RunState
from triptych.v1.stage_pb2 import ImageData, ModelInfo, Stage, StageEvent

# A picture of 256 tokens would fill the log with steps that nobody can see one by one.
MAX_PROGRESS_EVENTS = 64
# A client that sets no option of its own receives messages of up to 4 MiB: larger pictures do not travel in events.
MAX_INLINE_BYTES = 3 * 2**20


class Record:
    def __init__(self, name: str, spec: RunSpec) -> None:
        self.run = Run(name=name, spec=spec)
        self.run.create_time.GetCurrentTime()
        self.log = EventLog()
        # Files of finished pictures, by the picture's name.
        self.files: dict[str, bytes] = {}
        self._images: dict[str, Image] = {}
        self._positions: dict[Stage.ValueType, dict[int, int]] = {}
        self._told_position: dict[Stage.ValueType, int] = {}
        self._enter(RunState.RUN_STATE_QUEUED)

    @property
    def name(self) -> str:
        return self.run.name

    def image_name(self, kind: StageKind, index: int) -> str:
        return f"{self.name}/images/{kind.name}-{index}"

    def find_image(self, name: str) -> Image | None:
        """A finished picture, without its file."""
        return self._images.get(name)

    def to_proto(self) -> Run:
        """The run as it stands."""
        run = Run()
        run.CopyFrom(self.run)
        run.last_sequence = self.log.last_sequence
        run.images.extend(self._images.values())
        return run

    def begin(self) -> None:
        self.run.start_time.GetCurrentTime()
        self._enter(RunState.RUN_STATE_RUNNING)

    def stage_started(self, kind: StageKind, worker: str, attempt: int, index: int, parent: str) -> None:
        started = Event.StageStarted(
            stage=kind.stage, worker=worker, attempt=attempt, indexes=[index], parent=parent
        )
        self.log.append(Event(stage_started=started))

    def queued(self, kind: StageKind, index: int, position: int) -> None:
        """An image's place in its worker's queue; what is told is that of the run's first, when it changes."""
        places = self._positions.setdefault(kind.stage, {})
        if position:
            places[index] = position
        else:
            places.pop(index, None)
        first = min(places.values(), default=0)
        if first != self._told_position.get(kind.stage, 0):
            self._told_position[kind.stage] = first
            self.log.append(Event(queued=Event.Queued(stage=kind.stage, position=first)))

    def progress(self, kind: StageKind, progress: StageEvent.Progress) -> None:
        step, num_steps = progress.step, progress.num_steps
        if num_steps > MAX_PROGRESS_EVENTS:
            share = MAX_PROGRESS_EVENTS / num_steps
            if int(step * share) == int((step - 1) * share):
                return
        told = Event.ImageProgress(stage=kind.stage, index=progress.index, step=step, num_steps=num_steps)
        self.log.append(Event(progress=told))

    def preview(self, kind: StageKind, preview: StageEvent.Preview) -> None:
        if len(preview.image.data) > MAX_INLINE_BYTES:
            return
        told = Event.ImagePreview(
            stage=kind.stage,
            index=preview.index,
            step=preview.step,
            num_steps=preview.num_steps,
            image=preview.image,
        )
        self.log.append(Event(preview=told))

    def image_ready(
        self, kind: StageKind, job: Job, picture: ImageData, model: ModelInfo, parent: str
    ) -> Image:
        """Keeps the finished picture; the event in the log goes without the file."""
        image = Image(
            name=self.image_name(kind, job.index),
            parent=parent,
            stage=kind.stage,
            index=job.index,
            seed=job.seed,
            width=picture.width,
            height=picture.height,
            mime_type=picture.mime_type or "image/png",
            sha256=hashlib.sha256(picture.data).hexdigest(),
            model_name=model.name,
            model_digest=model.digest,
        )
        self.files[image.name] = picture.data
        self._images[image.name] = image
        self.log.append(Event(image_ready=Event.ImageReady(image=image)))
        return image

    def timing(self, kind: StageKind, timing: StageEvent.Timing, waited_s: float) -> None:
        """`waited_s` is what the gateway waited for the picture; what the stage cannot account for was transfer."""
        told = ImageTiming(
            image=self.image_name(kind, timing.index),
            stage=kind.stage,
            queue=timing.queue,
            batch_wait=timing.batch_wait,
            compute=timing.compute,
            encode=timing.encode,
        )
        known = (timing.queue, timing.batch_wait, timing.compute, timing.encode)
        transfer_ns = int(waited_s * 1e9) - sum(part.ToNanoseconds() for part in known)
        transfer = Duration()
        transfer.FromNanoseconds(max(0, transfer_ns))
        told.transfer.CopyFrom(transfer)
        self.run.timings.append(told)
        self.log.append(Event(timing=told))

    def ranked(
        self, kind: StageKind, scores: Sequence[tuple[Image, float]], selected: Sequence[Image]
    ) -> None:
        """`scores` best first."""
        for image, score in scores:
            self._images[image.name].clip_score = score
        told = Event.Ranked(
            stage=kind.stage,
            scores=[Event.Ranked.Score(image=image.name, clip_score=score) for image, score in scores],
            selected=[image.name for image in selected],
        )
        self.log.append(Event(ranked=told))

    def warn(self, reason: str, message: str, image: str = "") -> None:
        self.log.append(Event(warning=Event.Warning(reason=reason, message=message, image=image)))

    def finish(self, state: RunState.ValueType, error: TriptychError | None) -> None:
        """The last event."""
        self.run.state = state
        self.run.end_time.GetCurrentTime()
        finished = Event.Finished(state=state)
        if error is not None:
            finished.error.CopyFrom(RunError(reason=error.reason, message=str(error)))
            self.run.error.CopyFrom(finished.error)
        self.log.append(Event(finished=finished))
        self.log.close()

    def _enter(self, state: RunState.ValueType) -> None:
        self.run.state = state
        changed = Event.StateChanged(state=state, run=self.name)
        if not self.log.last_sequence:
            changed.spec.CopyFrom(self.run.spec)
        self.log.append(Event(state=changed))
