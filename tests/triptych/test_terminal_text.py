"""Text of others on the way to a terminal: in what commands print, and in both formats of logs."""

import json
import logging
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from deploy.command import logs
from services.serving.log_format import DiscreetFormatter, JsonFormatter
from triptych.terminal_text import escape, escape_json

HOSTILE = "red\x1b]0;PWNED\x07 \u202egnp.\x9b31m\x7f"
WRITTEN = "red\\x1b]0;PWNED\\x07 \\u202egnp.\\x9b31m\\x7f"


def record(text):
    return logging.LogRecord("gateway", logging.WARNING, __file__, 1, "a worker said %s", (text,), None)


def test_control_and_bidi_characters_are_written_out():
    assert escape(HOSTILE) == WRITTEN
    assert escape("a\tb\nc", keeps_lines=True) == "a\tb\nc"


def test_in_json_they_stay_the_same_characters():
    written = escape_json(json.dumps(HOSTILE, ensure_ascii=False))
    assert json.loads(written) == HOSTILE
    assert written.isprintable()


def test_the_log_of_a_deployed_worker_cannot_move_the_cursor():
    place = SimpleNamespace(deployer=SimpleNamespace(logs=lambda worker, num_lines: f"a\n{HOSTILE}\n"))
    assert CliRunner().invoke(logs, ["worker-1"], obj=place).stdout == f"a\n{WRITTEN}\n"


def test_a_message_is_one_line_of_the_log():
    line = DiscreetFormatter("%(levelname).1s %(message)s").format(record(f"{HOSTILE}\nE all is lost"))
    assert line == f"W a worker said {WRITTEN}\\nE all is lost"


def test_the_lines_of_a_stack_trace_stay():
    try:
        raise OSError(HOSTILE)
    except OSError as error:
        failed = record("x")
        failed.exc_info = (type(error), error, error.__traceback__)
    lines = DiscreetFormatter("%(message)s").format(failed).splitlines()
    assert len(lines) > 3
    assert lines[-1] == f"OSError: {WRITTEN}"


@pytest.mark.parametrize("text", [HOSTILE, "a\nb"])
def test_a_json_log_has_one_printable_line_with_the_same_text(text):
    line = JsonFormatter().format(record(text))
    assert line.isprintable()
    assert json.loads(line)["message"] == f"a worker said {text}"
