"""Completion: what a shell is given, and what it then learns, without importing what it does not need."""

import subprocess
import sys

import pytest

from tests.triptych.cli.command_line import ROOT, command, environment


def complete(*words: str) -> dict[str, str]:
    """What fish gets for the last word: suggestions with their help."""
    *before, last = words
    done = subprocess.run(
        command(),
        cwd=ROOT,
        env=environment(
            _TRIPTYCH_COMPLETE="fish_complete",
            COMP_WORDS=" ".join(["triptych", *before]),
            COMP_CWORD=last,
        ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    rows = [line.removeprefix("plain,").partition("\t") for line in done.stdout.splitlines()]
    return {name: summary for name, _, summary in rows}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_a_script_that_asks_the_command_line(triptych, shell):
    done = triptych("completion", shell)
    assert done.returncode == 0
    assert f"_TRIPTYCH_COMPLETE={shell}_complete" in done.stdout


def test_bash_takes_its_script(triptych, tmp_path):
    (tmp_path / "script").write_text(triptych("completion", "bash").stdout)
    subprocess.run(
        ["bash", "-c", "source ./script && complete -p triptych"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_commands_are_completed_with_what_they_do():
    found = complete("ru")
    assert found == {"run": "Make pictures from a prompt.", "runs": found["runs"]}


def test_commands_of_a_group_and_options_are_completed():
    assert set(complete("runs", "s")) == {"show", "select"}
    assert "--candidates" in complete("run", "--can")


def test_completing_a_command_imports_none_of_them():
    script = (
        "import os, sys; os.environ |= {'_TRIPTYCH_COMPLETE': 'fish_complete', 'COMP_WORDS': 'triptych',"
        "'COMP_CWORD': ''}; from triptych.cli.main import main\n"
        "try: main()\n"
        "finally: print([name for name in ('grpc', 'numpy', 'rich', 'PIL') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "plain,runs" in done.stdout
    assert done.stderr == "[]\n"
