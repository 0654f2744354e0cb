"""Deployment target `local`: workers as processes of this machine, found by the sockets that they listen on."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from deploy.deployer import STAGES, DeployError, Leftovers, Offer, State, Worker
from deploy.health_check import health_error
from deploy.tagged_processes import TaggedProcesses, kill


class LocalDeployer:
    """Processes that carry the tag `name`; their logs are in `folder`."""

    def __init__(self, name: str, folder: Path, options: Mapping[str, Sequence[str]] | None = None) -> None:
        """`options` are further ones of `triptych serve`, by stage."""
        self.name = name
        self.processes = TaggedProcesses(name, folder)
        self._options = options or {}

    def plan(self) -> Sequence[Offer]:
        memory_gb = psutil.virtual_memory().total / 1e9
        return [Offer(f"this machine: {os.cpu_count()} cores, {memory_gb:.0f} GB", False, 0.0, 0.0)]

    def launch(self, stage: str) -> Worker:
        if stage not in STAGES:
            raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        process = self.processes.start(stage, ["--port", "0", *self._options.get(stage, ())])
        return Worker(str(process.pid), stage, "", State.STARTING, "this machine")

    def endpoints(self) -> Sequence[Worker]:
        return [self._describe(process, service) for service, process in self.processes if service in STAGES]

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        return self.processes.log_of(worker_id, num_lines)

    def follow_log(self, worker_id: str, *, num_lines: int | None = 50) -> Iterator[str]:
        return self.processes.follow_log(worker_id, num_lines)

    def check_owner(self) -> None:
        """Never raises: only processes of the user who asks are found, so a name is each user's own."""

    def drain(self, worker_id: str) -> None:
        # A stage that is stopped reports NOT_SERVING, finishes what it makes within its --grace, and ends.
        for process in self.processes.numbered(worker_id):
            (self.processes.folder / f"draining-{worker_id}").touch()
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def stop(self, worker_id: str) -> None:
        for process in self.processes.numbered(worker_id):
            kill(process)

    def teardown(self) -> Leftovers:
        self.processes.end([process for _, process in self.processes])
        return Leftovers([f"process {process.pid}" for _, process in self.processes])

    def _describe(self, process: psutil.Process, stage: str) -> Worker:
        address = ""
        with suppress(psutil.Error):
            listening = [
                one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN
            ]
            if listening:
                # gRPC listens on IPv4 through a socket of IPv6.
                host = listening[0].ip.removeprefix("::ffff:")
                address = f"[{host}]:{listening[0].port}" if ":" in host else f"{host}:{listening[0].port}"
        if (self.processes.folder / f"draining-{process.pid}").exists():
            state = State.DRAINING
        else:
            state = State.SERVING if address and not health_error(address) else State.STARTING
        return Worker(str(process.pid), stage, address, state, "this machine")
