"""Local processes found by a tag in their environment; they outlive the command that started them.

The tag is a variable in their environment, so they are found even when every file is lost.
"""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from deploy.deployer import DeployError
from services.private_files import create_private_file, make_private_folder
from triptych._installation import child_command, child_environment

TAG = "TRIPTYCH_DEPLOYMENT"
STOP_TIMEOUT_S = 10.0
FOLLOW_EVERY_S = 0.3
# They outlive this process; while it lives, it has to reap those that end.
CHILDREN: list[subprocess.Popen[bytes]] = []


class TaggedProcesses:
    """`triptych serve` processes with one tag; their logs are in `folder`."""

    def __init__(self, tag: str, folder: Path) -> None:
        self.tag = tag
        self.folder = folder

    def start(self, service: str, options: Sequence[str]) -> psutil.Process:
        """Starts `triptych serve SERVICE` with the tag, free of this process and its terminal."""
        make_private_folder(self.folder)
        # Named after the start: the process id is not known before the file is open.
        log = self.folder / f"{service}-{time.time_ns()}.log"
        with os.fdopen(create_private_file(log), "ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own command
                child_command("serve", service, *options),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**child_environment(), TAG: self.tag, "PYTHONUNBUFFERED": "1"},
            )
        CHILDREN.append(process)
        log.rename(self.folder / f"{service}-{process.pid}.log")
        started = psutil.Process(process.pid)
        # The system lets a program begin before it shows its environment, and without it nothing is found here.
        while _is_hidden(started):
            time.sleep(0.01)
        return started

    def __iter__(self) -> Iterator[tuple[str, psutil.Process]]:
        """What carries the tag and serves, oldest first: the service's name and its process.

        Only of the user who asks: root sees the environment of others' processes, too.
        """
        found = []
        for process in psutil.process_iter():
            # Processes end while they are looked at, and those of others may not be looked into.
            with suppress(psutil.Error, OSError):
                if process.uids().real != os.getuid():
                    continue
                if process.environ().get(TAG) != self.tag or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                command = process.cmdline()
                if "serve" in command[:-1]:
                    found.append((process.create_time(), command[command.index("serve") + 1], process))
        for _, service, process in sorted(found, key=lambda one: one[0]):
            yield service, process

    def numbered(self, number: str) -> list[psutil.Process]:
        """The process of that id, if it is one of ours: numbers are used again, tags are not."""
        return [process for _, process in self if str(process.pid) == number]

    def log_of(self, number: str, num_lines: int) -> str:
        """The end of its log, also when the process has ended."""
        with self._log_path(number).open(encoding="utf-8", errors="replace") as file:
            return "\n".join(line.rstrip("\n") for line in deque(file, num_lines))

    def announcement_of(self, number: str) -> str:
        """The first line that a service prints when it serves, as JSON; empty until then."""
        with self._log_path(number).open(encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith('{"service"') and line.endswith("\n")), "")

    def follow_log(self, number: str, num_lines: int | None) -> Iterator[str]:
        """The last lines of its log (None: all), then each further one until the process has ended."""
        with self._log_path(number).open(encoding="utf-8", errors="replace") as file:
            yield from (line.rstrip("\n") for line in deque(file, num_lines))
            unfinished = ""
            while True:
                has_ended = not self.numbered(number)
                for line in file:
                    unfinished += line
                    if unfinished.endswith("\n"):
                        yield unfinished.rstrip("\n")
                        unfinished = ""
                if has_ended:
                    return
                time.sleep(FOLLOW_EVERY_S)

    def _log_path(self, number: str) -> Path:
        paths = list(self.folder.glob(f"*-{number}.log")) if number.isdecimal() else []
        if not paths:
            raise DeployError(f"there is no log of {number} in {self.folder}")
        return paths[0]

    def end(self, processes: Sequence[psutil.Process]) -> None:
        """Lets them end, and ends those that do not."""
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
        for process in alive:
            kill(process)
        CHILDREN[:] = [child for child in CHILDREN if child.poll() is None]


def _is_hidden(process: psutil.Process) -> bool:
    try:
        return TAG not in process.environ()
    except psutil.Error:
        return False  # it has ended


def kill(process: psutil.Process) -> None:
    """Returns when it is gone."""
    with suppress(psutil.NoSuchProcess):
        process.kill()
        process.wait(STOP_TIMEOUT_S)
