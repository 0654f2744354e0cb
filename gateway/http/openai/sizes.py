"""Chooses the stages for a requested size, and how the image is fitted to it.

Under a family's own name only sizes that the stages make are accepted. Under OpenAI's names any size is: the nearest one
that the stages make is scaled until it covers the size, and cut evenly on both sides (services/images/fit.py).
"""

import math
import re
from collections.abc import Sequence

from gateway.http.openai.models import ModelFamily
from services.errors import InvalidRequest

Size = tuple[int, int]

# OpenAI's sizes are 256 to 1792 px; a model of theirs takes others within such bounds.
MIN_SIDE_PX, MAX_SIDE_PX = 16, 4096
_SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})")


def choose_stages(
    size: str, family: ModelFamily, choices: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], Size | None]:
    """The stages for a `size` such as "512x512", and what to bring their picture to; None: as it is.

    `choices`: the lists of stages that may run; "auto" takes the first. Raises InvalidRequest that lists the sizes there
    are, or NoWorker.
    """
    if size.lower() == "auto":
        family.side_px(choices[0])
        return choices[0], None
    sides = {stages: family.side_px(stages) for stages in choices}
    sizes = {f"{side}x{side}": stages for stages, side in sides.items()}
    if size in sizes:
        return sizes[size], None
    if not family.is_openai:
        raise InvalidRequest(
            "size",
            f"this model makes {' and '.join(sizes)} pictures, and auto is the first; got {size[:40]!r}",
        )
    width, height = _parse(size, list(sizes))
    nearest = min(choices, key=lambda stages: _distance(sides[stages], max(width, height)))
    return nearest, (width, height)


def _distance(side_px: int, wanted_px: int) -> tuple[float, int]:
    """How far apart two sides are, as a ratio; of two that are as far the larger one is nearer."""
    return round(abs(math.log2(max(1, side_px) / wanted_px)), 6), -side_px


def _parse(size: str, made: Sequence[str]) -> Size:
    found = _SIZE.fullmatch(size.strip())
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in sides):
        raise InvalidRequest(
            "size",
            f"must be auto or WIDTHxHEIGHT, each from {MIN_SIDE_PX} to {MAX_SIDE_PX}; the model makes "
            f"{' and '.join(made)}, and others are made from these; got {size[:40]!r}",
        )
    return sides
