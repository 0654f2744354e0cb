"""What a run has made so far: its pictures with their bytes, seeds, scores and parents.

Gathered from the run's events. Pictures show themselves in a notebook. It draws with Pillow only when it is asked to.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from triptych.progress import STAGE_NAMES
from triptych.stages import STAGES
from triptych.v1.pipeline_pb2 import Event, Image, RunError, RunState
from triptych.vocabulary import describe_reading

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    from triptych.contact_sheet import SheetRow


STAGE_TITLES: Mapping[str, str] = {stage.name: stage.title for stage in STAGES}


FINISHED = {"succeeded", "partially_succeeded", "cancelled", "failed"}


@dataclass(frozen=True, repr=False)
class Picture:
    """A finished picture. `stage` is "generate", "refine" or "upscale"; `parent` the name of what it was made from."""

    name: str
    stage: str
    index: int
    seed: int
    parent: str
    width: int
    height: int
    mime_type: str
    sha256: str
    model_name: str
    model_digest: str
    # Empty where the gateway does not have the file any more.
    data: bytes
    # Nearness to the prompt, where the stage was ranked.
    clip_score: float | None = None
    # Whether it went on to another stage, by its score or by hand, or was among the best of the last.
    is_chosen: bool = False

    def __repr__(self) -> str:
        score = "" if self.clip_score is None else f", clip_score={self.clip_score:.3f}"
        return f"<Picture {self.name} {self.width}x{self.height}, seed={self.seed}{score}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {self.mime_type: self.data, "text/plain": repr(self)}

    def _repr_png_(self) -> bytes | None:
        return self.data if self.mime_type == "image/png" else None

    def save(self, path: str | Path) -> Path:
        """Writes the picture in the format that the name ends with, .png as it came; returns where.

        Raises ValueError for an ending that is not known, or a format that cannot hold the picture.
        """
        from triptych.image_files import encode_as, format_of

        Path(path).write_bytes(encode_as(self.data, format_of(path)))
        return Path(path)

    def open(self) -> "PillowImage":
        """The picture decoded by Pillow."""
        import PIL.Image

        return PIL.Image.open(io.BytesIO(self.data))

    @classmethod
    def of(cls, image: Image) -> "Picture":
        """From an image of the contract that has its data."""
        return cls(
            name=image.name,
            stage=STAGE_NAMES.get(image.stage, "other"),
            index=image.index,
            seed=image.seed,
            parent=image.parent,
            width=image.width,
            height=image.height,
            mime_type=image.mime_type or "image/png",
            sha256=image.sha256,
            model_name=image.model_name,
            model_digest=image.model_digest,
            data=image.data,
            clip_score=image.clip_score if image.HasField("clip_score") else None,
        )


def state_name(state: RunState.ValueType) -> str:
    """ "succeeded" for RUN_STATE_SUCCEEDED."""
    return RunState.Name(state).removeprefix("RUN_STATE_").lower()


@dataclass
class RunResult:
    """A run, as far as its events were received. `state` is a RunState's name, such as "succeeded"."""

    name: str = ""
    prompt: str = ""
    seed: int = 0
    state: str = "unspecified"
    last_sequence: int = 0
    # Why it failed, or what its failed pictures failed of.
    error: RunError | None = None
    warnings: list[str] = field(default_factory=list)
    # What the model draws in place of words that it does not know, a line each.
    notes: list[str] = field(default_factory=list)
    _pictures: dict[str, Picture] = field(default_factory=dict, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more comes, unless images are selected again."""
        return self.state in FINISHED

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in the order of stages and indexes."""
        order = list(STAGE_NAMES.values())
        return sorted(
            self._pictures.values(),
            key=lambda picture: (
                order.index(picture.stage) if picture.stage in order else len(order),
                picture.index,
            ),
        )

    @property
    def sketches(self) -> list[Picture]:
        return self.of_stage("generate")

    @property
    def variations(self) -> list[Picture]:
        return self.of_stage("refine")

    @property
    def upscaled(self) -> list[Picture]:
        return self.of_stage("upscale")

    @property
    def enlarged(self) -> list[Picture]:
        """The old name of `upscaled`; it goes with the next release."""
        return self.upscaled

    @property
    def best(self) -> Picture | None:
        """Of the last stage that made any, the picture nearest to the prompt; the first where none is scored."""
        for stage in reversed(list(STAGE_TITLES)):
            if pictures := self.of_stage(stage):
                return max(pictures, key=lambda picture: picture.clip_score or 0.0)
        return None

    def of_stage(self, stage: str) -> list[Picture]:
        return [picture for picture in self.pictures if picture.stage == stage]

    def __getitem__(self, name: str) -> Picture:
        """By name, in full or as its last part: `result["refine-2"]`."""
        full = name if "/" in name else f"{self.name}/images/{name}"
        return self._pictures[full]

    def update(self, event: Event) -> None:
        """Takes in the next event of the run."""
        self.last_sequence = max(self.last_sequence, event.sequence)
        match event.WhichOneof("kind"):
            case "state":
                self.name = event.state.run or self.name
                self.state = state_name(event.state.state)
                if event.state.HasField("spec"):
                    self.prompt, self.seed = event.state.spec.prompt, event.state.spec.seed
                if event.state.HasField("prompt_reading"):
                    self.notes = list(describe_reading(event.state.prompt_reading))
            case "image_ready":
                self._pictures[event.image_ready.image.name] = Picture.of(event.image_ready.image)
            case "ranked":
                self._mark(event.ranked)
            case "selected":
                for choice in event.selected.choices:
                    self._choose(choice.selection.image)
            case "selection_required":
                self.state = state_name(RunState.RUN_STATE_AWAITING_SELECTION)
            case "warning":
                self.warnings.append(event.warning.message)
            case "finished":
                self.state = state_name(event.finished.state)
                self.error = event.finished.error if event.finished.HasField("error") else None

    def merge(self, later: "RunResult") -> None:
        """Adds what a later part of the same run has made, such as that of a selection."""
        self.state, self.error, self.last_sequence = later.state, later.error, later.last_sequence
        self.warnings += later.warnings
        self._pictures |= later._pictures

    def _mark(self, ranked: Event.Ranked) -> None:
        for score in ranked.scores:
            if (picture := self._pictures.get(score.image)) is not None:
                self._pictures[picture.name] = replace(picture, clip_score=score.clip_score)
        for name in ranked.selected:
            self._choose(name)

    def _choose(self, name: str) -> None:
        # Of a picture that was there before these events nothing is known.
        if (picture := self._pictures.get(name)) is not None:
            self._pictures[name] = replace(picture, is_chosen=True)

    def contact_sheet(self, previews: Mapping[tuple[str, int], bytes] = MappingProxyType({})) -> bytes:
        """A PNG of all pictures with their scores and seeds, the chosen ones framed.

        `previews` stand, by stage and index, where a picture is not finished yet.
        """
        from triptych.contact_sheet import draw_contact_sheet

        drawn = io.BytesIO()
        bands = [self._band(stage, previews) for stage in STAGE_TITLES]
        title = f"{self.prompt} ({'; '.join(self.notes)})" if self.notes else self.prompt
        draw_contact_sheet(title, bands).save(drawn, "PNG")
        return drawn.getvalue()

    def _band(self, stage: str, previews: Mapping[tuple[str, int], bytes]) -> "SheetRow":
        from triptych.contact_sheet import SheetCell, SheetRow

        panels = {
            each.index: SheetCell(io.BytesIO(each.data), caption_of(each), each.is_chosen)
            for each in self.of_stage(stage)
            if each.data
        }
        for (of_stage, index), data in previews.items():
            if of_stage == stage and index not in panels:
                panels[index] = SheetCell(io.BytesIO(data), f"{stage}-{index}\n...")
        return SheetRow(STAGE_TITLES[stage], [panels[index] for index in sorted(panels)])

    def _repr_png_(self) -> bytes:
        return self.contact_sheet()


def caption_of(picture: Picture) -> str:
    """Two lines for below a picture."""
    scored = "" if picture.clip_score is None else f"  clip {picture.clip_score:.3f}"
    return f"{picture.name.rpartition('/')[2]}{scored}\nseed {picture.seed}"
