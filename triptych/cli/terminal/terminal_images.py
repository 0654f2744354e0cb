"""Shows images in the terminal: kitty's graphics, sixel, or coloured half blocks.

The terminal is asked what it can, by textual-image, when the first picture is shown; nothing is asked of one that
could not answer.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as PillowImage
from rich.console import Console
from rich.text import Text

from triptych.cli.terminal.streams import is_plain_terminal, terminal_columns
from triptych.image_files import any_size

# Cells of the terminal that a picture is at least and at most wide.
LEAST_CELLS = 18
MOST_CELLS = 36
# Of a row of pictures as it is drawn for the terminal to scale, in pixels.
SIDE_PX = 320
GAP_PX = 8


@dataclass(frozen=True)
class Shown:
    """A picture's file and a few words for below it."""

    data: bytes
    caption: str


def can_ask_terminal() -> bool:
    """Whether a terminal is there to show pictures and to be asked how: this process reads from it and writes to it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or is_plain_terminal():
        return False
    # A process in the background is stopped when it sets the terminal up to be asked.
    return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()


def show_pictures(pictures: Sequence[Shown], console: Console | None = None) -> None:
    """Prints the pictures in rows, each with its caption."""
    renderable = choose_renderable()
    console = console or Console(force_terminal=True, highlight=False)
    columns = terminal_columns(console.width)
    for row in rows(pictures, columns):
        num_cells = min(MOST_CELLS, columns // max(1, len(row)))
        console.print(renderable(draw_row(row), width=num_cells * len(row), height="auto"))
        console.print(caption_line([each.caption for each in row], num_cells), no_wrap=True)


def choose_renderable() -> Any:
    """textual-image's class for this terminal; it asks when it is imported."""
    # A terminal that never answers is a warning with a traceback there; half blocks are shown all the same.
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)
    if can_ask_terminal():
        from textual_image.renderable import Image

        return Image
    if sys.stdout.isatty():
        # Importing any of the package would ask.
        raise RuntimeError("this terminal cannot be asked for pictures; leave --show out")
    from textual_image.renderable import HalfcellImage

    return HalfcellImage


def rows(pictures: Sequence[Shown], width: int) -> Iterator[Sequence[Shown]]:
    """As many in a row as the terminal's width holds."""
    num_in_row = max(1, width // LEAST_CELLS)
    for start in range(0, len(pictures), num_in_row):
        yield pictures[start : start + num_in_row]


def draw_row(row: Sequence[Shown]) -> PillowImage.Image:
    """The pictures side by side, each as large as its square holds."""
    drawn = PillowImage.new("RGB", (len(row) * SIDE_PX, SIDE_PX))
    room = SIDE_PX - GAP_PX
    for place, each in enumerate(row):
        with any_size(), PillowImage.open(io.BytesIO(each.data)) as picture:
            scale = room / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            drawn.paste(
                picture.convert("RGB").resize(size, PillowImage.Resampling.LANCZOS), (place * SIDE_PX, 0)
            )
    return drawn


def caption_line(captions: Sequence[str], num_cells: int) -> Text:
    """The captions, each as wide as its picture."""
    return Text(
        "".join(caption[: num_cells - 1].ljust(num_cells) for caption in captions).rstrip(), style="dim"
    )
