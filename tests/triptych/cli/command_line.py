"""How tests start the command line in a process of its own."""

import os
import select
import signal
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "triptych", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """Ours without what a developer may have set for the command line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIPTYCH_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra


class Marked:
    """A process whose descendants, adopted ones included, are known by a mark in their environment."""

    def __init__(self, arguments: list[str], folder: Path = ROOT) -> None:
        self.mark = f"TRIPTYCH_TEST_MARK={uuid.uuid4().hex}"
        variables = environment() | dict([self.mark.split("=")])
        self.process = subprocess.Popen(
            arguments, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        while text not in (line := self.process.stdout.readline()):
            assert line, f"it ended before it said {text!r}: {self.process.communicate()[1]}"

    def pids(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it ended meanwhile, or is not ours to look at
                continue
        return found

    def signal_and_wait_for_all(self, number: signal.Signals) -> None:
        """Signals the parent alone; fails unless every process with the mark ends within half a minute."""
        watches = self._watch()
        self.process.send_signal(number)
        self.wait_for_all(watches)

    def wait_for_all(self, watches: list[int] | None = None) -> None:
        """Fails unless every process that is watched, or else has the mark now, ends within half a minute."""
        for watch in self._watch() if watches is None else watches:
            ready, _, _ = select.select([watch], [], [], 30)
            os.close(watch)
            assert ready, "a process stayed behind"

    def _watch(self) -> list[int]:
        watches = []
        for pid in self.pids():
            with suppress(ProcessLookupError):  # it ended meanwhile
                watches.append(os.pidfd_open(pid))
        return watches

    def close(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()
