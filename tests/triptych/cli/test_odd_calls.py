"""Odd arguments, environments and terminals: the right exit code, a line that explains why, and never a traceback."""

import pytest

from tests.triptych.cli.command_line import ROOT
from tests.triptych.cli.odd_calls import DONE, calls, make_all, shown


def test_there_are_more_than_a_hundred():
    assert len({call.name for call in calls()}) > 100


def test_the_table_of_the_docs_has_each():
    docs = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    assert [call.name for call in calls() if f"| {shown(call.name)[:60]} |" not in docs] == []


# Each call is a process of its own.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.matrix), 12])
def test_each_has_its_exit_code_and_no_traceback(gateway, tmp_path, every):
    wrong = []
    for call, outcome in make_all(gateway.address, tmp_path, list(calls())[::every]):
        problems = []
        if outcome.code not in call.codes:
            problems.append(f"exit code {outcome.code}, expected {call.codes}")
        if "Traceback" in outcome.output or "Exception ignored" in outcome.output:
            problems.append("a traceback")
        if outcome.code != DONE and not outcome.last_line and 2 not in call.closed:
            problems.append("not a word")
        if call.columns is None and any(sign in outcome.output for sign in "\x1b\x07\x9b\u202e\u2066\u2028"):
            problems.append("an escape of others")
        if problems:
            wrong.append(f"{call.name}: {', '.join(problems)}: {outcome.output[-300:]}")
    assert not wrong, "\n".join(wrong)
