"""Deployment target `ssh`: workers on machines that you have.

Each machine keeps, in a folder of the deployment, what is known of its workers, and each worker carries the deployment's
tag: nothing has to be remembered here. One command to each machine, all in parallel, lists what there is.
"""

import io
import json
import re
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from deploy.deployer import STAGES, DeployError, Leftovers, Offer, State, Worker
from deploy.health_check import health_error
from deploy.owner import current_owner, foreign_error
from deploy.ssh import scripts
from deploy.ssh.connection import Connection, NotOwner, Unreachable
from deploy.ssh.machine_list import Machine, Machines
from triptych.credentials import Credentials

STOP_TIMEOUT_S = 10
# A worker's folder: when it was started, what it is, the port that it was given, its device, its number.
FOLDER = re.compile(rf"(\d{{19}})-({'|'.join(STAGES)})-(\d+)-(\d*)-([0-9a-f]{{8}})")
# Of the folder of `triptych certs`: with what the gateway calls stages.
CLIENT_FILES = ("ca.crt", "gateway-client.crt", "gateway-client.key")
NUMBER = re.compile(r"[0-9a-f]{8}")

Tell = Callable[[str], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Found:
    """A worker, as its machine reports it."""

    machine: Machine
    started: int
    stage: str
    given_port: int
    gpu: str
    number: str
    state: str = "running"
    said: str = ""

    @property
    def folder(self) -> str:
        """On its machine."""
        return f"{self.started:019}-{self.stage}-{self.given_port}-{self.gpu}-{self.number}"

    @property
    def id(self) -> str:
        return f"{self.machine.name}.{self.number}"

    @property
    def address(self) -> str:
        """Where the gateway reaches it; empty until it has said its port."""
        try:
            port = int(str(json.loads(self.said)["address"]).rpartition(":")[2])
        except (ValueError, KeyError, TypeError):
            return ""
        host = self.machine.reached_at.strip("[]")
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class SshDeployer:
    """Workers of one deployment on the machines of a list."""

    def __init__(
        self,
        name: str,
        machines: Machines,
        *,
        certificates: Path | None = None,
        options: Mapping[str, Sequence[str]] | None = None,
        tell: Tell = lambda line: None,
    ) -> None:
        """`certificates` are those of `triptych certs`; `tell` hears of machines that cannot be asked."""
        self.name = name
        self._tag = f"ssh:{name}"
        self._owner = current_owner()
        self._machines = {machine.name: machine for machine in machines.machines}
        self._options = machines.options if options is None else options
        self._certificates = certificates
        self._connections = {machine.name: Connection(machine) for machine in machines.machines}
        self._tell = tell
        # Reported already.
        self._troubles: dict[str, str] = {}

    @property
    def credentials(self) -> Credentials | None:
        """With which workers are called."""
        if self._certificates is None:
            return None
        ca, cert, key = (self._certificates / name for name in CLIENT_FILES)
        return Credentials("", ca, cert, key)

    @property
    def gateway_options(self) -> Sequence[str]:
        """Of `triptych serve gateway`, with which it calls the workers."""
        if self._certificates is None:
            return ()
        ca, cert, key = (str((self._certificates / name).absolute()) for name in CLIENT_FILES)
        return "--stage-ca", ca, "--stage-cert", cert, "--stage-key", key

    def plan(self) -> Sequence[Offer]:
        offers = [
            Offer(
                f"{machine.name}: {machine.kind or 'a machine'}",
                is_spot=False,
                price_per_hour=machine.price_per_hour,
                evictions_per_hour=0.0,
                note=f"{machine.workers} of {', '.join(machine.stages)}",
            )
            for machine in self._machines.values()
        ]
        return sorted(offers, key=lambda offer: offer.price_per_hour)

    def launch(self, stage: str) -> Worker:
        if stage not in STAGES:
            raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        found = self._ask()
        for machine in self._with_room(stage, found):
            there = [one for one in found[machine.name] if one.state != "ended"]
            try:
                return self._start(_placed(machine, stage, there))
            except Unreachable as error:
                self._tell(str(error))
        raise DeployError(
            f"no machine has room for another {stage}: raise `workers`, add the stage to `stages`, or list another machine"
        )

    def endpoints(self) -> Sequence[Worker]:
        found = [one for listed in self._ask().values() for one in listed if one.state != "ended"]
        num_workers = {name: sum(one.machine.name == name for one in found) or 1 for name in self._machines}
        with ThreadPoolExecutor(max(len(found), 1)) as threads:
            workers = list(threads.map(self._describe, sorted(found, key=lambda one: one.started)))
        return [
            replace(worker, price_per_hour=worker.price_per_hour / num_workers[worker.machine])
            for worker in workers
        ]

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        machine, number = self._of(worker_id)
        lines = self._run(machine, scripts.LOGS, number, str(num_lines)) if machine else []
        if not lines:
            raise DeployError(f"there is no log of {worker_id} on {', '.join(self._machines)}")
        return "\n".join(lines)

    def follow_log(self, worker_id: str, *, num_lines: int | None = 50) -> Iterator[str]:
        self.logs(worker_id, num_lines=1)  # raises where there is none
        machine, number = self._of(worker_id)
        assert machine is not None  # noqa: S101 - it has a log
        arguments = [*self._place(machine), number, "+1" if num_lines is None else str(num_lines)]
        yield from self._connections[machine.name].follow(scripts.FOLLOW, arguments)

    def check_owner(self) -> None:
        def check(machine: Machine) -> DeployError | None:
            try:
                self._run(machine, scripts.CHECK_OWNER)
            except Unreachable:
                return None  # what is there is asked for when it is needed
            except DeployError as error:
                return error
            return None

        if error := next(filter(None, self._everywhere(check).values()), None):
            raise error

    def drain(self, worker_id: str) -> None:
        machine, number = self._of(worker_id)
        if machine:
            self._run(machine, scripts.DRAIN, number)

    def stop(self, worker_id: str) -> None:
        machine, number = self._of(worker_id)
        if machine:
            self._run(machine, scripts.STOP, number, str(STOP_TIMEOUT_S))

    def teardown(self) -> Leftovers:
        """A machine that cannot be reached may still run what it ran, so it counts as left."""

        def end(machine: Machine) -> list[str]:
            try:
                left = self._run(machine, scripts.TEARDOWN, str(STOP_TIMEOUT_S))
            except DeployError as error:
                return [f"whatever runs on {machine.name} ({error})"]
            return [f"{thing} on {machine.name}" for thing in left]

        self.check_owner()
        left = self._everywhere(end)
        return Leftovers(
            [thing for things in left.values() for thing in things],
            sum(self._machines[name].price_per_hour for name, things in left.items() if things),
        )

    def close(self) -> None:
        """Ends the connections."""
        for connection in self._connections.values():
            connection.close()

    def _start(self, worker: Found) -> Worker:
        machine, stage = worker.machine, worker.stage
        host = machine.reached_at.strip("[]") if machine.is_loopback else "0.0.0.0"  # noqa: S104 - see below
        options = ["--host", host, "--port", str(worker.given_port), *self._options.get(stage, ())]
        settings = {**machine.environment, **({"CUDA_VISIBLE_DEVICES": worker.gpu} if worker.gpu else {})}
        files = b""
        if self._certificates is not None:
            options += ["--tls-cert", "stage.crt", "--tls-key", "stage.key", "--tls-client-ca", "ca.crt"]
            files = _packed(self._certificates, stage)
        elif machine.insecure:
            options += ["--insecure"]
        elif not machine.is_loopback:
            raise DeployError(
                f"others could use the workers of {machine.name}: make certificates (triptych certs certificates --hostname "
                f"{machine.reached_at}) and give them (--certificates certificates), or, in a private network, say "
                "`insecure = true` in the list of machines"
            )
        self._run(
            machine,
            scripts.LAUNCH,
            *(worker.folder, machine.triptych),
            *(f"{name}={value}" for name, value in settings.items()),
            *("--", "yes" if files else "no", stage, *options),
            data=files,
        )
        return Worker(worker.id, stage, "", State.STARTING, machine.name, machine.price_per_hour)

    def _with_room(self, stage: str, found: Mapping[str, Sequence[Found]]) -> list[Machine]:
        """Where another worker may run: the cheapest machine first, the emptiest of those."""
        num_there = {name: sum(one.state != "ended" for one in listed) for name, listed in found.items()}
        fitting = [
            self._machines[name]
            for name, number in num_there.items()
            if stage in self._machines[name].stages and number < self._machines[name].workers
        ]
        return sorted(fitting, key=lambda machine: (machine.price_per_hour, num_there[machine.name]))

    def _describe(self, found: Found) -> Worker:
        state, note = State.STARTING, ""
        if found.state == "draining":
            state = State.DRAINING
        elif found.address:
            trouble = health_error(found.address, self.credentials)
            state = State.STARTING if trouble else State.SERVING
            note = f"it serves, but does not answer from here: {trouble}" if trouble else ""
        machine = found.machine
        return Worker(
            found.id, found.stage, found.address, state, machine.name, machine.price_per_hour, note=note
        )

    def _ask(self) -> dict[str, list[Found]]:
        """What each machine that can be reached has. Raises Unreachable when none can be."""

        def ask(machine: Machine) -> list[Found] | Unreachable:
            try:
                return _listed(machine, self._run(machine, scripts.LIST))
            except Unreachable as error:
                return error

        answers = self._everywhere(ask)
        troubles = {name: str(one) for name, one in answers.items() if isinstance(one, Unreachable)}
        if len(troubles) == len(answers):
            raise Unreachable("; ".join(troubles.values()))
        for name, trouble in troubles.items():
            if self._troubles.get(name) != trouble:
                self._tell(trouble)
        self._troubles = troubles
        return {name: one for name, one in answers.items() if not isinstance(one, Unreachable)}

    def _everywhere(self, ask: Callable[[Machine], Answer]) -> dict[str, Answer]:
        with ThreadPoolExecutor(len(self._machines)) as threads:
            return dict(zip(self._machines, threads.map(ask, self._machines.values()), strict=True))

    def _run(self, machine: Machine, script: str, *arguments: str, data: bytes = b"") -> list[str]:
        """The lines of a script's answer."""
        try:
            said = self._connections[machine.name].run(script, [*self._place(machine), *arguments], data)
        except NotOwner as error:
            raise foreign_error(self.name, error.owner) from None
        return [
            line.removeprefix("triptych\t") for line in said.splitlines() if line.startswith("triptych\t")
        ]

    def _place(self, machine: Machine) -> tuple[str, str, str]:
        """The first arguments of every script."""
        return f"{machine.folder.rstrip('/')}/{self.name}", self._tag, self._owner

    def _of(self, worker_id: str) -> tuple[Machine | None, str]:
        """The machine of a worker, and its number there."""
        name, _, number = worker_id.rpartition(".")
        return (self._machines.get(name) if NUMBER.fullmatch(number) else None), number


def _listed(machine: Machine, lines: Sequence[str]) -> list[Found]:
    found = []
    for line in lines:
        folder, state, said = [*line.split("\t", 2), "", ""][:3]
        parts = FOLDER.fullmatch(folder)
        if parts and state in ("running", "draining", "ended"):
            started, stage, port, gpu, number = parts.groups()
            found.append(Found(machine, int(started), stage, int(port), gpu, number, state, said))
    return found


def _placed(machine: Machine, stage: str, there: Sequence[Found]) -> Found:
    """A new worker: the first port that is free, and the device that has the fewest."""
    port, gpu = 0, ""
    if machine.first_port:
        taken = {one.given_port for one in there}
        port = next(port for port in range(machine.first_port, 65536) if port not in taken)
    if machine.gpus:
        used = [one.gpu for one in there]
        gpu = min((str(number) for number in range(machine.gpus)), key=used.count)
    return Found(machine, time.time_ns(), stage, port, gpu, secrets.token_hex(4))


def _packed(certificates: Path, stage: str) -> bytes:
    """What a stage needs of the folder of `triptych certs`, and nothing that is others'."""
    packed = io.BytesIO()
    names = {"ca.crt": "ca.crt", f"{stage}.crt": "stage.crt", f"{stage}.key": "stage.key"}
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, there in names.items():
            try:
                data = (certificates / name).read_bytes()
            except OSError as error:
                raise DeployError(
                    f"cannot read {certificates / name}: {error.strerror}; `triptych certs {certificates}` makes it"
                ) from None
            entry = tarfile.TarInfo(there)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()
