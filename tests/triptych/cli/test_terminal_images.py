"""Pictures in terminals of several kinds, and in none."""

import io

import pytest
from PIL import Image as PillowImage

from tests.triptych.cli import terminal
from tests.triptych.cli.command_line import command, environment
from tests.triptych.conftest import png
from triptych.cli.terminal.terminal_images import Shown, caption_line, draw_row, rows

RUN = ["run", "a red house", "--candidates", "2", "--no-refine", "--no-upscale", "--out", "pictures"]
SIXEL, HALF_BLOCK, ESCAPE = "\x1bP", "▀", "\x1b"


@pytest.fixture
def shown_in(gateway_process, tmp_path):
    """What a run shows in a terminal that answers so."""

    def show(kind, *more):
        arguments = command(*RUN, "--gateway", gateway_process, *more)
        variables = environment(TERM="xterm-256color", COLORTERM="truecolor")
        code, shown = terminal.run_in_terminal(arguments, kind, folder=tmp_path, env=variables)
        assert code == 0, shown
        return shown

    return show


def test_a_terminal_with_sixel_gets_sixel(shown_in):
    shown = shown_in(terminal.SIXEL)
    assert SIXEL in shown
    assert HALF_BLOCK not in shown
    assert "generate-0" in shown


def test_kitty_gets_its_own_graphics(shown_in):
    shown = shown_in(terminal.KITTY)
    # A PNG file in base64, and a place for it among the text.
    assert "f=100,q=2;iVBOR" in shown
    assert "U=1" in shown
    assert SIXEL not in shown


def test_another_terminal_gets_coloured_half_blocks(shown_in):
    shown = shown_in(terminal.PLAIN)
    assert "\x1b[38;2;" in shown
    assert HALF_BLOCK in shown


def test_a_terminal_gets_no_pictures_when_none_are_wanted(shown_in):
    shown = shown_in(terminal.SIXEL, "--no-show")
    assert SIXEL not in shown
    assert HALF_BLOCK not in shown
    assert terminal.ASKS_ATTRIBUTES not in shown


def test_the_run_asks_which_pictures_go_on(gateway_process, tmp_path):
    answers = {
        b"[generate 0 to 1]: ": b"1\n",
        b"[refine 0 to 2]: ": b"generate-7\n",
        b"there is no picture generate-7": b"generate-0\n",
        b"[refine 0 to 5]: ": b"4 5\n",
    }
    arguments = ["run", "a red house", "--candidates=2", "--variations=3", "--out=pictures", "--manual"]
    code, shown = terminal.run_in_terminal(
        command(*arguments, "--no-show", "--gateway", gateway_process),
        b"",
        answers,
        folder=tmp_path,
        env=environment(TERM="xterm-256color"),
    )
    assert code == 0, shown
    assert {path.stem for path in (tmp_path / "pictures").glob("*.png")} == {
        *(f"generate-{index}" for index in range(2)),
        *(f"refine-{index}" for index in range(6)),
        *(f"upscale-{index}" for index in range(2)),
        "contact-sheet",
    }


def test_pictures_to_choose_from_are_shown_once(gateway_process, tmp_path):
    arguments = ["run", "a red house", "--candidates=2", "--variations=2", "--no-upscale", "--manual"]
    code, shown = terminal.run_in_terminal(
        command(*arguments, "--gateway", gateway_process),
        terminal.SIXEL,
        {b"[generate 0 to 1]: ": b"1\n"},
        folder=tmp_path,
        env=environment(TERM="xterm-256color"),
    )
    assert code == 0, shown
    assert shown.count(SIXEL) == 2


def test_an_empty_answer_leaves_the_run_waiting(gateway_process, tmp_path):
    code, shown = terminal.run_in_terminal(
        command(
            "run", "a red house", "--candidates=2", "--manual", "--gateway", gateway_process, "--no-show"
        ),
        b"",
        {b"[generate 0 to 1]: ": b"\n"},
        folder=tmp_path,
        env=environment(TERM="xterm-256color", COLUMNS="200"),
    )
    assert code == 0, shown
    assert "The run waits for a choice, such as: triptych runs select" in shown


def test_choosing_takes_a_terminal_or_a_gateway_that_stays(triptych):
    done = triptych("run", "a red house", "--manual")
    assert done.returncode == 2
    assert "expected a terminal to choose in" in done.stderr


def test_what_is_no_terminal_gets_no_pictures_and_is_asked_nothing(triptych, gateway_process):
    done = triptych(*RUN, "--gateway", gateway_process)
    assert ESCAPE not in done.stdout + done.stderr


def test_half_blocks_can_be_had_without_a_terminal(triptych, gateway_process):
    done = triptych(*RUN, "--gateway", gateway_process, "--show")
    assert HALF_BLOCK in done.stdout


def test_json_is_never_mixed_with_pictures(triptych, gateway_process):
    done = triptych(*RUN, "--gateway", gateway_process, "--show", "--json")
    assert all(line.startswith("{") for line in done.stdout.splitlines())


def test_a_row_holds_as_many_pictures_as_the_width_allows():
    pictures = [Shown(png(), f"generate-{index}") for index in range(5)]
    assert [len(row) for row in rows(pictures, width=40)] == [2, 2, 1]
    assert [len(row) for row in rows(pictures, width=5)] == [1] * 5


def test_pictures_of_any_shape_stand_in_squares_of_one_size():
    wide = io.BytesIO()
    PillowImage.new("RGB", (64, 16), "red").save(wide, "PNG")
    drawn = draw_row([Shown(png(8), "a"), Shown(wide.getvalue(), "b")])
    assert drawn.size == (640, 320)
    assert drawn.getpixel((321, 77)) == (255, 0, 0)
    assert drawn.getpixel((321, 79)) == (0, 0, 0)


def test_captions_stand_below_their_pictures():
    assert caption_line(["one", "a long caption", "three"], 8).plain == "one     a long  three"
