"""The gateway of a deployment, as a process of this machine."""

import json
import time
from collections.abc import Sequence
from typing import Protocol

import psutil

from deploy.deployer import DeployError
from deploy.tagged_processes import TaggedProcesses

GATEWAY = "gateway"
START_TIMEOUT_S = 300.0


class Gateway(Protocol):
    """What `triptych deploy` asks of a deployment's gateway. All methods may block; all raise DeployError."""

    def start(self, *, port: int, http_port: int, http_hosts: Sequence[str] = ()) -> str:
        """Starts it unless it runs, waits until it serves, and returns a line for people; 0 is any free port."""
        ...

    def is_running(self) -> bool: ...

    def logs(self, *, num_lines: int) -> str:
        """The end of its log."""
        ...

    def stop(self) -> None:
        """Ends it, if it runs; what it has not finished goes on at its next start."""
        ...


class LocalGateway:
    """It reads the list of workers that the deployment keeps."""

    def __init__(self, processes: TaggedProcesses, options: Sequence[str]) -> None:
        """`options` of `triptych serve gateway` say where the workers are, and how they are called."""
        self._processes = processes
        self._options = options

    def start(self, *, port: int, http_port: int, http_hosts: Sequence[str] = ()) -> str:
        if running := self._process():
            return f"gateway runs as process {running.pid}"
        names = [option for host in http_hosts for option in ("--http-allowed-host", host)]
        process = self._processes.start(
            GATEWAY, ["--port", str(port), "--http-port", str(http_port), *names, *self._options]
        )
        said = self._first_words(process)
        return f"gateway serves at {said['address']}, its page at http://{said['http']}"

    def is_running(self) -> bool:
        return self._process() is not None

    def logs(self, *, num_lines: int) -> str:
        process = self._process()
        if process is None:
            raise DeployError(f"no gateway runs here; its logs are {self._processes.folder}/{GATEWAY}-*.log")
        return self._processes.log_of(str(process.pid), num_lines)

    def stop(self) -> None:
        process = self._process()
        if process is not None:
            self._processes.end([process])

    def _process(self) -> psutil.Process | None:
        return next((process for service, process in self._processes if service == GATEWAY), None)

    def _first_words(self, process: psutil.Process) -> dict[str, str]:
        """The line that it prints when it serves, from its log. Raises DeployError when it ends instead."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            for line in self._processes.log_of(str(process.pid), 100_000).splitlines():
                if line.startswith('{"service"'):
                    said: dict[str, str] = json.loads(line)
                    return said
            if not self._processes.numbered(str(process.pid)):
                last = self._processes.log_of(str(process.pid), 5)
                raise DeployError(f"the gateway did not start:\n{last}")
            time.sleep(0.2)
        raise DeployError(f"the gateway does not serve after {START_TIMEOUT_S:.0f} s; see `logs gateway`")
