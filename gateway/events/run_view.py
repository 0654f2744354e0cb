"""The contract's Run message, computed from a run's events."""

from collections.abc import Iterable

from triptych.v1.pipeline_pb2 import Event, Image, Run, RunState


class RunView:
    """`add` every event of a run, in order; previews may be missing."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.run = Run()
        self._images: dict[str, Image] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        run = self.run
        run.last_sequence = event.sequence
        match event.WhichOneof("kind"):
            case "state":
                self._enter(event)
            case "image_ready":
                image = Image()
                image.CopyFrom(event.image_ready.image)
                image.ClearField("data")
                self._images[image.name] = image
            case "ranked":
                for score in event.ranked.scores:
                    self._images[score.image].clip_score = score.clip_score
            case "timing":
                run.timings.append(event.timing)
            case "selected" if is_idle(run.state):
                self._reopen(RunState.RUN_STATE_QUEUED)
            case "finished":
                run.state = event.finished.state
                run.end_time.CopyFrom(event.time)
                if event.finished.HasField("error"):
                    run.error.CopyFrom(event.finished.error)

    @property
    def state(self) -> RunState.ValueType:
        return self.run.state

    def to_proto(self) -> Run:
        """The run as it stands."""
        run = Run()
        run.CopyFrom(self.run)
        run.images.extend(self._images.values())
        return run

    def _enter(self, event: Event) -> None:
        run, changed = self.run, event.state
        run.state = changed.state
        if not run.name:
            run.name = changed.run
            run.spec.CopyFrom(changed.spec)
            run.models.extend(changed.models)
            if changed.HasField("prompt_reading"):
                run.prompt_reading.CopyFrom(changed.prompt_reading)
            run.create_time.CopyFrom(event.time)
        if changed.state == RunState.RUN_STATE_RUNNING:
            if not run.HasField("start_time"):
                run.start_time.CopyFrom(event.time)
            self._reopen(changed.state)

    def _reopen(self, state: RunState.ValueType) -> None:
        """There is something to do, where it may have been at its end before."""
        self.run.state = state
        self.run.ClearField("end_time")
        self.run.ClearField("error")


def is_idle(state: RunState.ValueType) -> bool:
    """Whether nothing happens to a run in this state unless somebody asks for it."""
    return state == RunState.RUN_STATE_AWAITING_SELECTION or is_finished(state)


def is_finished(state: RunState.ValueType) -> bool:
    return state >= RunState.RUN_STATE_SUCCEEDED
