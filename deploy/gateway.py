"""The gateway of a deployment, as a process of this machine."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from deploy.deployer import DeployError
from deploy.health_check import health_error
from deploy.requested_state import GatewayRequest
from deploy.tagged_processes import TaggedProcesses

GATEWAY = "gateway"
START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Started:
    """`line` is for people; the addresses are empty where they are not known."""

    line: str
    address: str = ""
    http: str = ""


class Gateway(Protocol):
    """What `triptych deploy` asks of a deployment's gateway. All methods may block; all raise DeployError."""

    def start(self, request: GatewayRequest) -> Started:
        """Starts it unless it runs, and waits until it serves."""
        ...

    def is_running(self) -> bool: ...

    def problem(self) -> str:
        """Empty if it serves; else why not, in a few words."""
        ...

    def logs(self, *, num_lines: int) -> str:
        """The end of its log."""
        ...

    def follow_log(self, *, num_lines: int | None) -> Iterator[str]:
        """The last lines of its log (None: all), then each further one until it has ended."""
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

    def start(self, request: GatewayRequest) -> Started:
        if running := self._process():
            return Started(f"gateway runs as process {running.pid}")
        names = [option for host in request.http_hosts for option in ("--http-allowed-host", host)]
        ports = ["--port", str(request.port), "--http-port", str(request.http_port)]
        process = self._processes.start(GATEWAY, [*ports, *names, *self._options])
        said = self._first_words(process)
        line = f"gateway serves at {said['address']}, its page at http://{said['http']}"
        return Started(line, said["address"], said["http"])

    def is_running(self) -> bool:
        return self._process() is not None

    def problem(self) -> str:
        process = self._process()
        if process is None:
            return "it does not run"
        announcement = self._processes.announcement_of(str(process.pid))
        return health_error(json.loads(announcement)["address"]) if announcement else "it starts"

    def logs(self, *, num_lines: int) -> str:
        return self._processes.log_of(self._logged(), num_lines)

    def follow_log(self, *, num_lines: int | None) -> Iterator[str]:
        yield from self._processes.follow_log(self._logged(), num_lines)

    def stop(self) -> None:
        process = self._process()
        if process is not None:
            self._processes.end([process])

    def _process(self) -> psutil.Process | None:
        return next((process for service, process in self._processes if service == GATEWAY), None)

    def _logged(self) -> str:
        """The number of the one that runs, or of the last one that ran, whose log has the reason of its end."""
        if process := self._process():
            return str(process.pid)
        logs = self._processes.folder.glob(f"{GATEWAY}-*.log")
        newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None:
            raise DeployError(f"no gateway runs here, and none has left a log in {self._processes.folder}")
        return newest.stem.removeprefix(f"{GATEWAY}-")

    def _first_words(self, process: psutil.Process) -> dict[str, str]:
        """The line that it prints when it serves, from its log. Raises DeployError when it ends instead."""
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if announcement := self._processes.announcement_of(str(process.pid)):
                said: dict[str, str] = json.loads(announcement)
                return said
            if not self._processes.numbered(str(process.pid)):
                last = self._processes.log_of(str(process.pid), 5)
                raise DeployError(f"the gateway did not start:\n{last}")
            time.sleep(0.2)
        raise DeployError(f"the gateway does not serve after {START_TIMEOUT_S:.0f} s; see `logs gateway`")
