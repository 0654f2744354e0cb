"""Workers as processes of this machine, which outlive the command that started them.

Their tag is a variable in their environment, so they are found again whatever became of every file; their addresses are
read from the sockets that they listen on.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from deploy.deployer import STAGES, DeployError, Leftovers, Offer, State, Worker

TAG = "TRIPTYCH_DEPLOYMENT"
# The gateway of a deployment carries the tag, too, and is no worker.
GATEWAY = "gateway"
STOP_TIMEOUT_S = 10.0


class LocalDeployer:
    """Processes that carry the tag `name`; their logs are in `folder`."""

    def __init__(self, name: str, folder: Path, options: Mapping[str, Sequence[str]] | None = None) -> None:
        """`options` are further ones of `triptych serve`, by stage."""
        self.name = name
        self._folder = folder
        self._options = options or {}
        # They outlive this process; while it lives, it has to reap those that end.
        self._children: list[subprocess.Popen[bytes]] = []

    def plan(self) -> Sequence[Offer]:
        memory_gb = psutil.virtual_memory().total / 1e9
        return [Offer(f"this machine: {os.cpu_count()} cores, {memory_gb:.0f} GB", False, 0.0, 0.0)]

    def launch(self, stage: str) -> Worker:
        if stage not in STAGES:
            raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        process = self.start(stage, ["--port", "0", *self._options.get(stage, ())])
        return Worker(str(process.pid), stage, "", State.STARTING, "this machine")

    def start(self, service: str, options: Sequence[str]) -> psutil.Process:
        """Starts `triptych serve SERVICE` with the tag, free of this process and its terminal."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Named after the start: the process id is not known before the file is open.
        log = self._folder / f"{service}-{time.time_ns()}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "triptych", "serve", service, *options],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, TAG: self.name, "PYTHONUNBUFFERED": "1"},
            )
        self._children.append(process)
        log.rename(self._log_of(service, process.pid))
        return psutil.Process(process.pid)

    def endpoints(self) -> Sequence[Worker]:
        return [
            self._describe(process, service) for service, process in self.processes() if service in STAGES
        ]

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """What carries the tag and serves, oldest first: the service's name and its process."""
        found = []
        for process in psutil.process_iter():
            # Processes end while they are looked at, and those of others may not be looked into.
            with suppress(psutil.Error, OSError):
                if process.environ().get(TAG) != self.name or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                command = process.cmdline()
                if "serve" in command[:-1]:
                    found.append((process.create_time(), command[command.index("serve") + 1], process))
        for _, service, process in sorted(found, key=lambda one: one[0]):
            yield service, process

    def is_running(self, worker_id: str) -> bool:
        return bool(self._tagged(worker_id))

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        paths = list(self._folder.glob(f"*-{worker_id}.log"))
        if not paths:
            raise DeployError(f"there is no log of {worker_id} in {self._folder}")
        lines = paths[0].read_text("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def drain(self, worker_id: str) -> None:
        # A stage that is asked to stop says NOT_SERVING, finishes what it makes within its --grace, and ends.
        for process in self._tagged(worker_id):
            (self._folder / f"draining-{worker_id}").touch()
            with suppress(psutil.NoSuchProcess):
                process.terminate()

    def stop(self, worker_id: str) -> None:
        for process in self._tagged(worker_id):
            _end(process)

    def teardown(self) -> Leftovers:
        processes = [process for _, process in self.processes()]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
        for process in alive:
            _end(process)
        left = [f"process {process.pid}" for _, process in self.processes()]
        for child in self._children:
            child.poll()
        return Leftovers(left)

    def _tagged(self, worker_id: str) -> list[psutil.Process]:
        """The process of that id, if it is one of ours: numbers are used again, tags are not."""
        return [process for _, process in self.processes() if str(process.pid) == worker_id]

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
        if (self._folder / f"draining-{process.pid}").exists():
            state = State.DRAINING
        else:
            state = State.SERVING if address and _serves(address) else State.STARTING
        return Worker(str(process.pid), stage, address, state, "this machine")

    def _log_of(self, service: str, pid: int) -> Path:
        return self._folder / f"{service}-{pid}.log"


def _serves(address: str) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # untyped in its stubs
                health_pb2.HealthCheckRequest(), timeout=2.0
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
        process.wait(STOP_TIMEOUT_S)
