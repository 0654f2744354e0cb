"""The programs in docs/client.md, run as they stand there."""

import re
import subprocess
import sys

import pytest

from tests.triptych.cli.command_line import ROOT, environment

ADDRESS = "127.0.0.1:50050"
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_page_runs(program, gateway_process, tmp_path):
    code = program.replace(ADDRESS, gateway_process)
    for name in re.findall(r'Path\("(\w+\.jpg)"\)', program):
        (tmp_path / name).write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.returncode == 0
