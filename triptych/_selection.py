"""Selections: which images of a run go to which stage, from a caller's arguments to the contract's messages."""

from collections.abc import Iterable
from typing import TypedDict

from triptych.result import Picture
from triptych.v1.pipeline_pb2 import RefineStage, UpscaleStage


class SelectedStage(TypedDict, total=False):
    """One of the two, as the fields of a SelectImagesRequest.Selection."""

    refine: RefineStage
    upscale: UpscaleStage


def selected_stage(refine: int | RefineStage | None, upscale: bool | UpscaleStage) -> SelectedStage:
    """`refine` by a number of variations or a message, `upscale` by True or a message. Raises ValueError for both or none."""
    if (refine is None) == (upscale is False):
        raise ValueError(
            f"expected one of refine=NUMBER and upscale=True, got refine={refine!r} and upscale={upscale!r}"
        )
    if refine is not None:
        return {"refine": RefineStage(count=refine) if isinstance(refine, int) else refine}
    return {"upscale": upscale if isinstance(upscale, UpscaleStage) else UpscaleStage()}


def image_names(images: str | Picture | Iterable[str | Picture]) -> list[str]:
    """Full names of images of one run. Raises ValueError where there is none, or they are of several runs."""
    several = [images] if isinstance(images, str | Picture) else list(images)
    names = [each.name if isinstance(each, Picture) else each for each in several]
    runs = {name.partition("/images/")[0] for name in names}
    if len(runs) != 1 or not all("/images/" in name for name in names):
        raise ValueError(f"expected images of one run, such as 'runs/7f3a/images/generate-2', got {names}")
    return names
