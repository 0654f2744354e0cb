"""Validates request fields; errors name the field and the range."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidRequest
from triptych.v1.stage_pb2 import FIT_CROP, FIT_PAD, FIT_UNSPECIFIED, ImageItem, ModelInfo

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


def read_setting(settings: Any, name: str, model: ModelInfo, default: float | None = None) -> float:
    """An optional field of a stage's settings, or the model's default for it.

    Raises InvalidRequest outside the range that the model reports. `default` replaces the model's where it depends on
    the request.
    """
    if not settings.HasField(name):
        return model.defaults[name] if default is None else default
    value = float(getattr(settings, name))
    check_range(value, model.ranges[name], f"settings.{name}")
    return value


def number(message: Any, name: str, default: float, *, high: float, path: str) -> float:
    """An optional field of a message that is no setting, or its default; raises InvalidRequest outside [0, high]."""
    value = float(getattr(message, name)) if message.HasField(name) else default
    check_range(value, ModelInfo.Range(highest=high), f"{path}.{name}")
    return value


def check_range(value: float, legal: ModelInfo.Range, field: str) -> None:
    """Raises InvalidRequest for a value outside the range, and for one that is not finite."""
    lowest, highest = _as_float32(legal.lowest), _as_float32(legal.highest)
    is_low = value < lowest or legal.excludes_lowest and value == lowest
    is_high = value > highest or legal.excludes_highest and value == highest
    if is_low or is_high or not math.isfinite(value):
        low, high = _digits(legal.lowest), _digits(legal.highest)
        span = f"{low} to {high}"
        if legal.excludes_lowest:
            span = f"above {low} and {'below' if legal.excludes_highest else 'at most'} {high}"
        elif legal.excludes_highest:
            span = f"at least {low} and below {high}"
        raise InvalidRequest(field, f"must be {span}, got {_digits(value)}")


def _as_float32(value: float) -> float:
    """A bound as a field holds it: 0.01 of a float field is a little less."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) < 1e12 and value == round(value) else f"{value:g}"


def check_steps_left(num_steps: int, skip_ratio: float, least: int, field: str) -> None:
    """Raises InvalidRequest where an image that is made from another one has too few steps left to be made in."""
    # Rounded as the refiner does.
    if (left := num_steps - round(num_steps * skip_ratio)) < least:
        raise InvalidRequest(
            field,
            f"must leave at least {least} of {num_steps} steps, got {skip_ratio:g} which leaves {left}; ask for more "
            "steps, or for less to be skipped",
        )


def check_fit(fit: int, field: str) -> None:
    """Raises InvalidRequest for a value that the contract does not have."""
    if fit not in (FIT_UNSPECIFIED, FIT_CROP, FIT_PAD):
        raise InvalidRequest(field, f"must be FIT_CROP or FIT_PAD, got {fit}")
