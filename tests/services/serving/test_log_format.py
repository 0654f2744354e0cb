"""What an unexpected error leaves in a log."""

import logging
import sys

import pytest

from services.serving.log_format import LEFT_OUT, DiscreetFormatter


def logged(error):
    try:
        raise error
    except type(error):
        record = logging.LogRecord("services", logging.ERROR, "", 1, "it failed", (), sys.exc_info())
    return DiscreetFormatter("%(message)s").format(record)


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, IndexError])
def test_what_an_error_quotes_is_left_out(kind):
    text = logged(kind("cannot read 'a secret house'\nor 'another'"))
    assert "secret" not in text
    assert "another" not in text
    assert text.endswith(f"{kind.__name__}: {LEFT_OUT}")


def test_where_it_came_from_is_reported():
    text = logged(ValueError("x"))
    assert text.startswith("it failed\nTraceback")
    assert "in logged\n    raise error" in text


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("CUDA out of memory")]
)
def test_what_a_machine_prints_is_reported(error):
    assert logged(error).endswith(str(error))


def test_what_an_error_behind_another_quotes_is_left_out():
    error = RuntimeError("the job failed")
    error.__cause__ = ValueError("a secret house")
    error.__context__ = ExceptionGroup("several", [KeyError("a secret key")])
    text = logged(error)
    assert "secret" not in text
    assert "the job failed" in text
