"""Makes standard input and output safe: closed, of another encoding, or a terminal of odd size.

What goes wrong while something is shown never changes what the command did, nor its exit code.
"""

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Of a terminal that does not say, and the least that a table is drawn for.
USUAL_COLUMNS = 80
LEAST_COLUMNS = 20


class ForgivingFile(io.FileIO):
    """A file whose reader may go away: what is written from then on has nowhere to go, without an error."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]  # any buffer
        try:
            return super().write(data)
        except BrokenPipeError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def set_up_streams() -> None:
    """Opens what is closed on nothing, and lets every character be written whatever the encoding."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            _open_on_nothing(descriptor, name, mode)
        elif mode == "w" and stream is getattr(sys, f"__{name}__"):
            with suppress(OSError, ValueError, AttributeError):
                _forgive(descriptor, name)


def make_console(*, stderr: bool = False, width: int | None = None) -> "Console":
    """rich's console; a terminal without columns is taken to have 80, and one of very few to have 20."""
    # `triptych --help` does without.
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, width=width)
    if width is None:
        console.width = terminal_columns(console.width)
    return console


def terminal_columns(said: int) -> int:
    return USUAL_COLUMNS if said < 1 else max(said, LEAST_COLUMNS)


def is_plain_terminal() -> bool:
    """Whether the terminal, if it is one, can do no more than show lines."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def _open_on_nothing(descriptor: int, name: str, mode: str) -> None:
    # The number must be taken: the next file or connection that is opened would get it, and our output.
    opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    stream = open(descriptor, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _forgive(descriptor: int, name: str) -> None:
    old = getattr(sys, name)
    old.flush()
    raw = ForgivingFile(descriptor, "w", closefd=False)
    buffered = io.BufferedWriter(raw)  # type: ignore[type-var]  # it is a raw file
    line_buffering = raw.isatty() or name == "stderr"
    new = io.TextIOWrapper(
        buffered, encoding=old.encoding, errors="backslashreplace", line_buffering=line_buffering
    )
    setattr(sys, name, new)
