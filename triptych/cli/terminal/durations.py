"""Durations as people type them: `90s`, `10m`, `1h30m`, `30d`."""

import re
from datetime import timedelta

import click

_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")


def parse_duration(text: str) -> timedelta | None:
    """None if the text is no duration."""
    found = _DURATION.fullmatch(text)
    if not text or not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """In its two largest units: `3d 4h`, `5m 10s`."""
    seconds = max(int(duration.total_seconds()), 0)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts.append((count, unit))
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count or unit == "s")


class Duration(click.ParamType[timedelta, str | timedelta]):
    """A click type for durations."""

    name = "DURATION"

    def convert(
        self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        if (duration := parse_duration(value)) is None:
            self.fail(f"expected a duration such as 90s, 10m, 1h30m or 30d, got {value!r}", param, ctx)
        return duration
