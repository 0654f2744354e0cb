"""What is shown while a command is silent."""

import io
from pathlib import Path

import pytest

from triptych.cli.terminal.spinner import ERASE_LINE, Spinner, spinning
from triptych.terminal_text import echo


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_nothing_is_shown_for_two_seconds_and_then_one_line_that_goes():
    terminal, clock = Terminal(), Clock()
    spinner = Spinner("measuring", terminal, clock)
    assert spinner.tick() == 2.0
    clock.now_s = 2.0
    spinner.tick()
    spinner.update("measuring, round 2")
    clock.now_s = 3.0
    spinner.tick()
    spinner.end()
    assert terminal.getvalue() == (
        f"{ERASE_LINE}measuring ... 2 s{ERASE_LINE}measuring, round 2 ... 3 s{ERASE_LINE}"
    )


def test_a_log_gets_a_line_each_half_minute():
    log, clock = io.StringIO(), Clock()
    spinner = Spinner("measuring", log, clock)
    clock.now_s = 2.0
    assert spinner.tick() == 30.0
    spinner.end()
    assert log.getvalue() == "measuring ... 2 s\n"


def test_other_lines_begin_the_silence_anew():
    terminal, clock = Terminal(), Clock()
    spinner = Spinner("waiting", terminal, clock)
    clock.now_s = 2.0
    spinner.tick()
    with spinner.writing():
        terminal.write("a worker serves\n")
    assert spinner.tick() == 2.0
    assert terminal.getvalue() == f"{ERASE_LINE}waiting ... 2 s{ERASE_LINE}a worker serves\n"


def test_what_a_command_prints_meanwhile_is_on_a_line_of_its_own(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("triptych.cli.terminal.spinner.SILENT_S", 0.0)
    with spinning("verifying") as spinner:
        spinner.tick()
        echo("2 files", err=True)
        shown = terminal.getvalue()
    assert shown.endswith(f"{ERASE_LINE}2 files\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("weights", "verify", "tiny", "--stage", "upscaler"), "verifying"),
        (("weights", "list"), "looking for models"),
        (("journal", "check", "journal.db"), "checking"),
        (("journal", "repair", "journal.db"), "repairing"),
        (("journal", "compare", "--journal", "journal.db"), "comparing"),
        (("journal", "prune", "--journal", "journal.db"), "comparing"),
        (("journal", "export", "runs.tar", "--journal", "journal.db"), "exporting"),
        (("journal", "import", "journal.db", "--journal", "journal.db"), "importing"),
    ],
)
def test_commands_that_may_take_long_show_that_they_live(triptych_here, monkeypatch, arguments, text):
    Path("journal.db").touch()
    Path("pictures").mkdir()
    monkeypatch.setattr("triptych.cli.terminal.spinner.SILENT_S", 0.0)
    assert f"{text} ... 0 s\n" in triptych_here(*arguments).stderr
