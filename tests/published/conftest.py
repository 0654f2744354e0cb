import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def metered(tmp_path_factory):
    """Runs `triptych weights` commands in one process of their own; a report of each."""
    from tests.triptych.cli.command_line import ROOT, environment

    def run(stage, folder, *commands):
        arguments = [json.dumps([str(word) for word in command]) for command in commands]
        done = subprocess.run(
            [sys.executable, "-m", "tests.published.metered", stage, str(folder), *arguments],
            cwd=ROOT,
            env=environment(TRIPTYCH_CACHE=str(folder)),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run
