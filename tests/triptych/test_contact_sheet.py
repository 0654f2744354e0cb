"""The contact sheet holds every picture, and frames the chosen ones."""

import pytest
from PIL import Image

from triptych.contact_sheet import CHOSEN, SheetCell, SheetRow, draw_contact_sheet

COLOURS = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff", "#ff00ff", "#123456", "#654321", "#0f0f0f"]


@pytest.fixture
def panels(tmp_path):
    made = []
    for position, colour in enumerate(COLOURS):
        file = tmp_path / f"{position}.png"
        Image.new("RGB", (16, 16), colour).save(file)
        made.append(SheetCell(file, f"sketch {position}\nseed 7"))
    return made


def count(sheet, colour):
    return sum(n for n, found in sheet.getcolors(2**24) if found == colour)


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def test_every_picture_is_on_the_sheet_at_one_size(panels):
    sheet = draw_contact_sheet("a prompt", [SheetRow("sketches", panels)])
    assert {count(sheet, rgb(colour)) for colour in COLOURS} == {176 * 176}


def test_large_pictures_that_are_few_are_shown_larger(panels, tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (512, 512), "#abcdef").save(large)
    sheet = draw_contact_sheet(
        "a prompt", [SheetRow("sketches", panels), SheetRow("upscaled", [SheetCell(large, "4x")])]
    )
    assert count(sheet, rgb("#abcdef")) == 512 * 512


def test_a_chosen_picture_has_a_frame(panels):
    chosen = SheetCell(panels[0].file, "", is_chosen=True)
    assert count(draw_contact_sheet("", [SheetRow("sketches", [SheetCell(panels[0].file, "")])]), CHOSEN) == 0
    assert count(draw_contact_sheet("", [SheetRow("sketches", [chosen])]), CHOSEN) == 182**2 - 176**2


def test_a_long_prompt_makes_the_sheet_higher_and_no_wider(panels):
    short = draw_contact_sheet("house", [SheetRow("sketches", panels)])
    long = draw_contact_sheet("house " * 400, [SheetRow("sketches", panels)])
    assert long.width == short.width
    assert short.height < long.height < short.height + 100


def test_a_stage_without_pictures_takes_no_room(panels):
    alone = draw_contact_sheet("house", [SheetRow("sketches", panels)])
    assert (
        draw_contact_sheet("house", [SheetRow("sketches", panels), SheetRow("upscaled", [])]).size
        == alone.size
    )
