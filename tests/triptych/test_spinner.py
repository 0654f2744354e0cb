"""What is shown while a command is silent."""

import io

from triptych.cli.terminal.spinner import ERASE_LINE, Spinner


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
