"""Folds a run's events into the images of one response: partial images, finished images, scores.

A run for OpenAI's API is a handful of straight lines: from the first stage of its `streamed_stages` on, every picture goes on to
exactly one that is answered. It knows events, and no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.stages import STAGES
from triptych.v1.pipeline_pb2 import Event, Image
from triptych.v1.stage_pb2 import ImageData, Stage

STAGE_OF = {stage.name: stage.number for stage in STAGES}


@dataclass
class ImageProgress:
    """A picture on its way, from the first stage of the spine to the last."""

    # Partial images that have been sent.
    num_partial: int = 0
    last: bytes = b""


@dataclass(frozen=True)
class PartialImage:
    """A true preview of picture `image_index`."""

    image_index: int
    number: int
    picture: ImageData


@dataclass
class RunResults:
    """`add` every event of a run, in order."""

    # Its stages, in order, and the steps that each takes for a picture.
    streamed_stages: Mapping[str, int]
    num_partials: int = 0
    # Pictures of the last stage, in the order in which they came, and files as far as events carry them.
    images: list[Image] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    # Steps that networks took, by stage and index.
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    # The prompt that is drawn, where it is not the caller's.
    revised_prompt: str = ""
    _parents: dict[tuple[Stage.ValueType, int], str] = field(default_factory=dict)
    _lines: dict[int, ImageProgress] = field(default_factory=dict)

    def add(self, event: Event) -> Image | PartialImage | None:
        """What of the event is for the caller."""
        match event.WhichOneof("kind"):
            case "state" if event.state.HasField("prompt_reading"):
                self.revised_prompt = event.state.prompt_reading.prompt
            case "stage_started":
                for index in event.stage_started.indexes:
                    self._parents[event.stage_started.stage, index] = event.stage_started.parent
            case "progress":
                self.steps[event.progress.stage, event.progress.index] = event.progress.num_steps
            case "preview":
                preview = event.preview
                done = preview.step / max(1, preview.num_steps)
                return self._partial(preview.stage, preview.index, done, preview.image)
            case "image_ready":
                image = event.image_ready.image
                if image.stage == STAGE_OF[list(self.streamed_stages)[-1]]:
                    self.images.append(image)
                    return image
                picture = ImageData(data=image.data, width=image.width, height=image.height)
                return self._partial(image.stage, image.index, 1.0, picture)
            case "ranked":
                self.scores |= {one.image: one.clip_score for one in event.ranked.scores}
            case "warning":
                self.warnings.append(event.warning.message)
        return None

    def line_of(self, stage: Stage.ValueType, index: int) -> int:
        """Which of the pictures that are answered this one becomes: its ancestor's place in the first stage of the spine."""
        while stage != STAGE_OF[next(iter(self.streamed_stages))]:
            name = self._parents.get((stage, index), "").rpartition("/")[2]
            stage_name, _, place = name.rpartition("-")
            if stage_name not in STAGE_OF:
                return index
            stage, index = STAGE_OF[stage_name], int(place)
        return index

    def score_of(self, image: Image) -> float | None:
        """Its own, or that of the picture which it upscales."""
        return self.scores.get(image.name, self.scores.get(image.parent))

    def best_first(self) -> list[Image]:
        return sorted(self.images, key=lambda image: (-(self.score_of(image) or 0.0), image.index))

    def _partial(
        self, stage: Stage.ValueType, index: int, done: float, picture: ImageData
    ) -> PartialImage | None:
        """The picture as it looks now, if the next partial image is due: they are spread evenly over all steps."""
        name = next((name for name in self.streamed_stages if STAGE_OF[name] == stage), None)
        if name is None or not picture.data:
            return None
        before = list(self.streamed_stages)[: list(self.streamed_stages).index(name)]
        steps = sum(self.streamed_stages[earlier] for earlier in before) + done * self.streamed_stages[name]
        image_index = self.line_of(stage, index)
        line = self._lines.setdefault(image_index, ImageProgress())
        due = (line.num_partial + 1) / (self.num_partials + 1) * sum(self.streamed_stages.values())
        if line.num_partial == self.num_partials or steps < due - 1e-9 or picture.data == line.last:
            return None
        line.num_partial, line.last = line.num_partial + 1, picture.data
        return PartialImage(image_index, line.num_partial - 1, picture)
