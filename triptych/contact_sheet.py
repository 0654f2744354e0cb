"""Draws the contact sheet of a run: a row for each stage, with captions; selected images are framed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageDraw, ImageFont

from triptych.image_files import any_size

# Pixels. A band whose few pictures are large, such as the upscaled one, gets wider cells.
CELL = 176
MAX_CELL = 512
# Larger ones take seconds and gigabytes to decode.
MAX_DRAWN_PIXELS = 100_000_000
MAX_COLUMNS = 8
GAP = 16
CAPTION_SIZE = 12
CAPTION_LINES = 2
TITLE_SIZE = 20
LINE = 18
FRAME = 3

PAPER = (250, 249, 246)
INK = (32, 32, 36)
FAINT = (120, 118, 112)
CHOSEN = (214, 84, 40)


@dataclass(frozen=True)
class SheetCell:
    """One picture of a band, with up to CAPTION_LINES lines of caption."""

    # A file, or one that is in memory.
    file: Path | BinaryIO
    caption: str
    is_chosen: bool = False


@dataclass(frozen=True)
class SheetRow:
    """The pictures of one stage."""

    title: str
    panels: Sequence[SheetCell]


@dataclass(frozen=True)
class Grid:
    """How a band's pictures are laid out."""

    num_columns: int
    num_rows: int
    cell: int

    @property
    def height(self) -> int:
        return 2 * LINE + self.num_rows * self.row_height

    @property
    def row_height(self) -> int:
        return self.cell + CAPTION_LINES * LINE + GAP


def draw_contact_sheet(title: str, bands: Sequence[SheetRow]) -> Image.Image:
    """All pictures of all bands on one sheet, the bands one below the other."""
    bands = [band for band in bands if band.panels]
    columns = min(MAX_COLUMNS, max((len(band.panels) for band in bands), default=1))
    columns = max(columns, 4)
    width = columns * (CELL + GAP) + GAP
    grids = [lay_out(band, width) for band in bands]
    title_lines = wrap(title, width - 2 * GAP)
    height = GAP + len(title_lines) * (TITLE_SIZE + 6) + sum(grid.height for grid in grids) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for line in title_lines:
        draw.text((GAP, y), line, INK, ImageFont.load_default(TITLE_SIZE))
        y += TITLE_SIZE + 6
    for band, grid in zip(bands, grids, strict=True):
        draw_band(sheet, draw, band, grid, y)
        y += grid.height
    return sheet


def lay_out(band: SheetRow, width: int) -> Grid:
    """As many columns as there are pictures, up to what fits; the fewer they are, the larger they may be shown."""
    num = len(band.panels)
    most = (width - GAP) // (CELL + GAP)
    num_columns = min(num, most)
    largest = max(size_of(band.panels[0].file))
    room = (width - GAP) // num_columns - GAP
    return Grid(num_columns, math.ceil(num / num_columns), max(CELL, min(room, largest, MAX_CELL)))


def draw_band(sheet: Image.Image, draw: ImageDraw.ImageDraw, band: SheetRow, grid: Grid, top: int) -> None:
    font = ImageFont.load_default(CAPTION_SIZE)
    draw.text((GAP, top + LINE // 2), band.title, FAINT, font)
    for position, panel in enumerate(band.panels):
        row, column = divmod(position, grid.num_columns)
        x = GAP + column * (grid.cell + GAP)
        y = top + 2 * LINE + row * grid.row_height
        picture = fitted(panel.file, grid.cell)
        if panel.is_chosen:
            corners = (x - FRAME, y - FRAME, x + picture.width + FRAME - 1, y + picture.height + FRAME - 1)
            draw.rectangle(corners, fill=CHOSEN)
        sheet.paste(picture, (x, y))
        draw.text(
            (x, y + picture.height + FRAME + 1), panel.caption, CHOSEN if panel.is_chosen else INK, font
        )


def fitted(file: Path | BinaryIO, cell: int) -> Image.Image:
    """The picture with its longer side as long as a cell; smaller ones are enlarged. A huge one is a gray field."""
    width, height = size_of(file)
    if width * height > MAX_DRAWN_PIXELS:
        scale = cell / max(width, height)
        field = Image.new("RGB", (max(1, round(width * scale)), max(1, round(height * scale))), FAINT)
        ImageDraw.Draw(field).text(
            (GAP, GAP), f"{width}x{height}", PAPER, ImageFont.load_default(CAPTION_SIZE)
        )
        return field
    with any_size(), Image.open(file) as image:
        scale = cell / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def size_of(file: Path | BinaryIO) -> tuple[int, int]:
    """Width and height, whatever they are; nothing is decoded."""
    with any_size(), Image.open(file) as image:
        return image.size


def wrap(text: str, width_px: int, max_lines: int = 3) -> list[str]:
    """The text in lines that fit; what does not fit into `max_lines` is cut with an ellipsis."""
    font = ImageFont.load_default(TITLE_SIZE)
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width_px:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " ..."]
    return lines
