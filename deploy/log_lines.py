"""Lines that other programs and machines print, without terminal commands, and the times of those of logs (`--since`)."""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import click

from triptych.cli.terminal.durations import parse_duration

# As logging writes it: "2026-01-31 12:00:00,123".
TEXT_TIME = re.compile(r"(\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2})[,.]?(\d{0,6})(Z|[+-]\d{2}:\d{2})?")

# All that a terminal could take for a command.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Since(click.ParamType[datetime, str | datetime]):
    """An age such as `90s`, `10m` or `1h30m`, or a time such as `2026-01-31T12:00:00`."""

    name = "AGE|TIME"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if (age := parse_duration(value)) is not None:
                return datetime.now(UTC) - age
            # Without an offset it is this machine's time, as in the text log.
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"expected an age such as 90s, 10m or 1h30m, or a time in ISO 8601, got {value!r}", param, ctx
            )


def lines_since(lines: Iterable[str], since: datetime) -> Iterator[str]:
    """The lines from that time on. A line without a time, such as a traceback's, has that of the line before."""
    is_recent = False
    for line in lines:
        if not is_recent and (when := time_of(line)) is not None:
            is_recent = when >= since
        if is_recent:
            yield line


def time_of(line: str) -> datetime | None:
    """When a line was logged, in both formats; None where it does not say."""
    try:
        if line.startswith("{"):
            return datetime.fromisoformat(json.loads(line)["time"]).astimezone(UTC)
        if found := TEXT_TIME.match(line):
            seconds, fraction, offset = found.groups()
            return datetime.fromisoformat(f"{seconds}.{fraction or 0:0<6}{offset or ''}").astimezone(UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    return None


def printable(text: str) -> str:
    """The text without control characters; ends of lines and tabs stay."""
    return _CONTROL.sub("", text.replace("\r\n", "\n"))


def follow_lines(command: Sequence[str], *, stderr: int) -> Iterator[str]:
    """Runs a command and yields each line that it prints, until it ends or the iterator is closed.

    `stderr` is subprocess.STDOUT, for its lines too, or subprocess.DEVNULL.
    """
    with subprocess.Popen(  # noqa: S603 - the callers' own commands
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy
        try:
            for line in process.stdout:
                yield printable(line).rstrip("\n")
        finally:
            process.terminate()
