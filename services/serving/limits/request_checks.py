"""Validates request fields; errors name the field and the range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidRequest
from triptych.v1.stage_pb2 import ImageItem, ModelInfo

# The reason of the warning about a prompt that is longer than the model's context.
PROMPT_TRUNCATED = "PROMPT_TRUNCATED"


def check_prompt(prompt: str, max_bytes: int, field: str = "prompt") -> str:
    """The prompt as given; raises InvalidRequest when it is blank or too long."""
    if (num_bytes := len(prompt.encode())) > max_bytes:
        raise InvalidRequest(field, f"must have at most {max_bytes} bytes, got {num_bytes}")
    if not prompt.strip():
        raise InvalidRequest(field, "must say what to draw, got nothing but white space")
    return prompt


def cut_prompt(prompt: str, max_bytes: int) -> str:
    """The beginning of a prompt that has at most so many bytes, up to the end of a word where there is one."""
    data = prompt.encode()
    if len(data) <= max_bytes:
        return prompt
    cut = data[:max_bytes].decode(errors="ignore")
    # Not in the middle of a word, unless that would cost much of the prompt.
    whole = cut.rsplit(None, 1)[0] if not prompt[len(cut)].isspace() else cut
    return (whole if len(whole) > len(cut) // 2 else cut).rstrip()


@dataclass(frozen=True)
class PromptLength:
    """How many text tokens a prompt has, those at its start and end included, and how many the model reads."""

    num_tokens: int
    max_tokens: int

    def warnings(self, reader: str, field: str = "prompt") -> dict[str, str]:
        """By its reason, that the end of the text is not read; empty if all of it is. `reader`: such as "generator"."""
        if self.num_tokens <= self.max_tokens:
            return {}
        return {
            PROMPT_TRUNCATED: f"{field}: the {reader} reads {self.max_tokens} text tokens and this has {self.num_tokens}; "
            "its end has no effect"
        }


def check_count(count: int, max_images: int, field: str) -> int:
    """How many images; raises InvalidRequest outside [1, max_images]."""
    if not 1 <= count <= max_images:
        raise InvalidRequest(field, f"must be 1 to {max_images}, got {count}")
    return count


def check_items(items: Sequence[ImageItem], limits: ModelInfo.Limits, field: str = "images") -> None:
    """Raises InvalidRequest when there are none, too many, or two of one index."""
    check_count(len(items), limits.max_images, field)
    check_indexes([item.index for item in items], field)


def check_indexes(indexes: Sequence[int], field: str) -> None:
    """Raises InvalidRequest when an index is negative or there twice."""
    seen: set[int] = set()
    for position, index in enumerate(indexes):
        if index < 0 or index in seen:
            raise InvalidRequest(
                f"{field}[{position}].index", f"must be unique and not negative, got {index}"
            )
        seen.add(index)


def number(
    settings: Any,
    name: str,
    default: float,
    *,
    low: float,
    high: float,
    above_low: bool = False,
    path: str = "settings",
) -> float:
    """An optional numeric field, or its default; raises InvalidRequest outside [low, high] or (low, high].

    `settings` is any message with an optional field `name`.
    """
    value = getattr(settings, name) if settings.HasField(name) else default
    if not math.isfinite(value) or not low <= value <= high or (above_low and value == low):
        span = f"above {low:g} and at most {high:g}" if above_low else f"{low:g} to {high:g}"
        raise InvalidRequest(f"{path}.{name}", f"must be {span}, got {value:g}")
    return float(value)


def integer(settings: Any, name: str, default: int, *, low: int, high: int, path: str = "settings") -> int:
    """As `number`, for a whole one."""
    return int(number(settings, name, default, low=low, high=high, path=path))
