"""Deployment target `compose`: workers as containers of docker-compose.yml.

A deployment is a project of compose, whose label every container, network and volume carries: what there is, is asked of
the engine by that label, which every version of compose sets, and whose files nobody needs to have kept. Its gateway is
one of the services and finds workers by name, so there is no list.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deploy.compose.build_context import compose_folder
from deploy.deployer import STAGES, DeployError, Leftovers, Offer, State, Worker
from deploy.gateway import GATEWAY, Started
from deploy.log_lines import follow_lines, printable
from deploy.owner import current_owner, foreign_error
from deploy.requested_state import GatewayRequest

COMPOSE_FILE = "docker-compose.yml"
GPU_FILE = "docker-compose.gpu.yml"
PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
VOLUME = "com.docker.compose.volume"
OWNER = "triptych.owner"
MONITORING = ("prometheus", "grafana")
# Behind the name of a container that was asked to end: the engine keeps it when all files here are lost.
DRAINING = "-draining"
# A container that has come up so often without ever being healthy will not be.
MAX_RESTARTS = 2
# As the compose file has it: a service gives its running calls 30 s.
STOP_TIMEOUT_S = 40
START_TIMEOUT_S = 600.0
ASK_EVERY_S = 0.5


@dataclass(frozen=True)
class Container:
    """A container, as `docker inspect` describes it."""

    said: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.said["Id"])[:12]

    @property
    def name(self) -> str:
        return str(self.said["Name"]).removeprefix("/")

    @property
    def service(self) -> str:
        return str(self.said["Config"]["Labels"].get(SERVICE, ""))

    @property
    def owner(self) -> str:
        """Who created it; empty where it has no such label."""
        return str(self.said["Config"]["Labels"].get(OWNER, ""))

    @property
    def created(self) -> str:
        return str(self.said["Created"])

    @property
    def lives(self) -> bool:
        """Also between two starts."""
        return self.said["State"]["Status"] in ("running", "restarting", "paused")

    @property
    def is_healthy(self) -> bool:
        state = self.said["State"]
        return bool(state["Status"] == "running" and state.get("Health", {}).get("Status") == "healthy")

    @property
    def address(self) -> str:
        """In the project's network, where its gateway is."""
        hosts = [network["IPAddress"] for network in self.said["NetworkSettings"]["Networks"].values()]
        ports = [port.partition("/")[0] for port in self.said["Config"].get("ExposedPorts") or ()]
        return f"{hosts[0]}:{ports[0]}" if hosts and hosts[0] and ports else ""

    @property
    def state(self) -> State:
        if self.name.endswith(DRAINING):
            return State.DRAINING
        if self.is_healthy:
            return State.SERVING
        return State.FAILING if self.said["RestartCount"] >= MAX_RESTARTS else State.STARTING

    def published(self, port: int) -> str:
        """Where on this machine a port of the container is; empty when nowhere."""
        bound = self.said["NetworkSettings"]["Ports"].get(f"{port}/tcp") or ()
        return f"{bound[0]['HostIp']}:{bound[0]['HostPort']}" if bound else ""


class Engine:
    """The containers engine, through its own command, and compose with the files of one project."""

    def __init__(self, project: str, files: Sequence[Path]) -> None:
        self.project = project
        self._files = files
        self._owner = current_owner()

    def containers(self) -> list[Container]:
        """All of the project, those that have ended included, oldest first."""
        ids = self.docker("ps", "-aq", "--no-trunc", "--filter", f"label={PROJECT}={self.project}").split()
        while True:
            try:
                said = json.loads(self.docker("inspect", "--type", "container", *ids)) if ids else []
            except DeployError:
                # One went away in between.
                there = set(self.docker("ps", "-aq", "--no-trunc").split())
                if there >= set(ids):
                    raise
                ids = [one for one in ids if one in there]
            else:
                return sorted(map(Container, said), key=lambda one: one.created)

    def labelled(self, kind: str) -> list[str]:
        """The names of the project's networks or volumes."""
        label = f"label={PROJECT}={self.project}"
        return self.docker(kind, "ls", "--filter", label, "--format", "{{.Name}}").split()

    def check_owner(self) -> None:
        """Raises DeployError if a container or volume of the project has the label of another user."""
        owners = {one.owner for one in self.containers()} | {
            labels.get(OWNER, "") for labels in self._volume_labels()
        }
        if others := owners - {"", self._owner}:
            raise foreign_error(self.project.removeprefix("triptych-"), min(others))

    def docker(self, *arguments: str) -> str:
        """Runs a command of the engine; returns what it prints. Raises DeployError."""
        return self._run(["docker", *arguments])

    def compose(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        return self._run([*self._compose, *arguments], environment)

    def follow_log(self, container: str, num_lines: int | None) -> Iterator[str]:
        """The last lines of a container's log (None: all), then each further one until it has ended."""
        tail = "all" if num_lines is None else str(num_lines)
        command = ["docker", "logs", "--follow", "--tail", tail, container]
        return follow_lines(command, stderr=subprocess.STDOUT)

    def build(self) -> None:
        """Takes minutes the first time, so it shows what it does."""
        done = subprocess.run([*self._compose, "build"], check=False)  # noqa: S603 - our own files
        if done.returncode != 0:
            raise DeployError(f"the images could not be built ({done.returncode}); see above")

    @cached_property
    def _compose(self) -> list[str]:
        for path in self._files:
            if not path.exists():
                raise DeployError(
                    f"there is no {path}: run this in a copy of the source, or name the file (--compose-file)"
                )
        files = [part for path in self._files for part in ("-f", os.fspath(path))]
        base = [*_compose_command(), "-p", self.project, *files]
        # It must last as long as the command is used.
        self._labels = tempfile.TemporaryDirectory(prefix="triptych-compose-")
        labels = Path(self._labels.name) / "owner.json"
        labels.write_text(json.dumps(self._owner_labels(base)))
        return [*base, "-f", os.fspath(labels)]

    def _owner_labels(self, base: Sequence[str]) -> dict[str, Any]:
        """A compose file that adds the owner's label to what the others name."""
        label = {"labels": {OWNER: self._owner}}
        asked = [*base, "--profile", "monitoring", "config"]
        try:
            config = json.loads(self._run([*asked, "--format", "json"]))
        except (DeployError, ValueError):
            # `docker-compose` prints no JSON.
            return {"services": dict.fromkeys(self._run([*asked, "--services"]).split(), label)}
        # An existing volume that is labelled otherwise would be made anew, without its data.
        kept = {labels.get(VOLUME) for labels in self._volume_labels() if OWNER not in labels}
        volumes = [
            name
            for name, volume in (config.get("volumes") or {}).items()
            if not (volume or {}).get("external") and name not in kept
        ]
        return {
            "services": dict.fromkeys(config["services"], label),
            **({"volumes": dict.fromkeys(volumes, label)} if volumes else {}),
        }

    def _volume_labels(self) -> list[dict[str, str]]:
        names = self.labelled("volume")
        said = json.loads(self.docker("volume", "inspect", *names)) if names else []
        return [one.get("Labels") or {} for one in said]

    def _run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - ids and names that the engine gave
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env={**os.environ, **(environment or {})},
            )
        except FileNotFoundError:
            raise DeployError(
                "there is no `docker` here: install Docker Engine (docs.docker.com/engine/install) or use another place"
            ) from None
        if done.returncode != 0:
            raise DeployError(_explain(command, done.stderr or done.stdout))
        # The log of a container comes on both.
        return done.stdout + (done.stderr if command[1] == "logs" else "")


class ComposeDeployer:
    """Containers of the project; volumes, which hold runs and certificates, outlive it unless it is said otherwise."""

    delete_volumes = False

    def __init__(self, name: str, files: Sequence[Path] | None = None) -> None:
        self.name = name
        files = [compose_folder() / COMPOSE_FILE] if files is None else files
        self.engine = Engine(f"triptych-{name}", files)

    def plan(self) -> Sequence[Offer]:
        said = json.loads(self.engine.docker("info", "--format", "{{json .}}"))
        what = f"engine {said['Name']}: {said['NCPU']} cores, {said['MemTotal'] / 1e9:.0f} GB"
        return [Offer(what, is_spot=False, price_per_hour=0.0, evictions_per_hour=0.0)]

    def launch(self, stage: str) -> Worker:
        if stage not in STAGES:
            raise DeployError(f"no stage '{stage}': expected one of {', '.join(STAGES)}")
        self.check_owner()
        before = self._of(stage)
        # Compose would start them again.
        for one in before:
            if not one.lives:
                self.engine.docker("rm", one.id)
        there = {one.id for one in before if one.lives}
        # Draining ones count as well, for compose ends those that are beyond its number.
        self.engine.compose("up", "-d", "--no-recreate", "--scale", f"{stage}={len(there) + 1}", stage)
        started = [one for one in self._of(stage) if one.id not in there]
        if not started:
            raise DeployError(f"compose started no further {stage}; see `docker ps -a`")
        return self._worker(started[-1])

    def endpoints(self) -> Sequence[Worker]:
        return [self._worker(one) for one in self.engine.containers() if one.service in STAGES and one.lives]

    def logs(self, worker_id: str, *, num_lines: int = 50) -> str:
        if not self._numbered(worker_id):
            raise DeployError(f"there is no log of {worker_id} in the project {self.engine.project}")
        return printable(self.engine.docker("logs", "--tail", str(num_lines), worker_id)).rstrip("\n")

    def follow_log(self, worker_id: str, *, num_lines: int | None = 50) -> Iterator[str]:
        if not self._numbered(worker_id):
            raise DeployError(f"there is no log of {worker_id} in the project {self.engine.project}")
        yield from self.engine.follow_log(worker_id, num_lines)

    def check_owner(self) -> None:
        self.engine.check_owner()

    def drain(self, worker_id: str) -> None:
        self.check_owner()
        for one in self._numbered(worker_id):
            if one.lives and one.state is not State.DRAINING:
                self.engine.docker("rename", one.id, one.name + DRAINING)
                # One that is ended by hand is not started again, whatever its policy.
                self.engine.docker("kill", "--signal", "TERM", one.id)

    def stop(self, worker_id: str) -> None:
        self.check_owner()
        for one in self._numbered(worker_id):
            self.engine.docker("rm", "--force", one.id)

    def teardown(self) -> Leftovers:
        self.check_owner()
        containers = [one.id for one in self.engine.containers()]
        if containers:
            self.engine.docker("stop", "--time", str(STOP_TIMEOUT_S), *containers)
            self.engine.docker("rm", "--force", *containers)
        kinds = ["network", *(["volume"] if self.delete_volumes else [])]
        for kind in kinds:
            for name in self.engine.labelled(kind):
                self.engine.docker(kind, "rm", name)
        left = [f"container {one.name}" for one in self.engine.containers()]
        return Leftovers(left + [f"{kind} {name}" for kind in kinds for name in self.engine.labelled(kind)])

    def _of(self, stage: str) -> list[Container]:
        return [one for one in self.engine.containers() if one.service == stage]

    def _numbered(self, worker_id: str) -> list[Container]:
        return [one for one in self.engine.containers() if one.service in STAGES and one.id == worker_id]

    def _worker(self, one: Container) -> Worker:
        return Worker(one.id, one.service, one.address, one.state, one.name)


class ComposeGateway:
    """The service `gateway` of the project, and those that watch it where that is wanted."""

    def __init__(self, engine: Engine, *, monitoring: bool = False) -> None:
        self._engine = engine
        self._monitoring = monitoring

    def start(self, request: GatewayRequest) -> Started:
        self._engine.check_owner()
        ports = {"TRIPTYCH_PORT": str(request.port), "TRIPTYCH_HTTP_PORT": str(request.http_port)}
        if request.http_hosts:
            ports["TRIPTYCH_HTTP_ALLOWED_HOST"] = " ".join(("localhost", "gateway", *request.http_hosts))
        self._engine.compose("up", "-d", "--no-recreate", GATEWAY, environment=ports)
        if self._monitoring:
            self._engine.compose("--profile", "monitoring", "up", "-d", "--no-recreate", *MONITORING)
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            one = self._container()
            if one is None or one.state is State.FAILING:
                last = self.logs(num_lines=5) if one else "its container is gone"
                raise DeployError(f"the gateway did not start:\n{last}")
            if one.is_healthy:
                address, http = one.published(50050), one.published(8080)
                return Started(f"gateway serves at {address}, its page at http://{http}", address, http)
            time.sleep(ASK_EVERY_S)
        raise DeployError(f"the gateway does not serve after {START_TIMEOUT_S:.0f} s; see `logs gateway`")

    def is_running(self) -> bool:
        return self._container() is not None

    def problem(self) -> str:
        one = self._container()
        if one is None:
            return "it does not run"
        return "" if one.is_healthy else f"its container is {one.state.value}"

    def follow_log(self, *, num_lines: int | None) -> Iterator[str]:
        yield from self._engine.follow_log(self._logged().id, num_lines)

    def logs(self, *, num_lines: int) -> str:
        said = self._engine.docker("logs", "--tail", str(num_lines), self._logged().id)
        return printable(said).rstrip("\n")

    def stop(self) -> None:
        self._engine.check_owner()
        one = self._container()
        if one is not None:
            self._engine.docker("stop", "--time", str(STOP_TIMEOUT_S), one.id)

    def _logged(self) -> Container:
        """The one that runs, or the last one that ran, whose log has the reason of its end."""
        found = [one for one in self._engine.containers() if one.service == GATEWAY]
        if not found:
            raise DeployError(f"there is no gateway of the project {self._engine.project}")
        return self._container() or found[-1]

    def _container(self) -> Container | None:
        found = [one for one in self._engine.containers() if one.service == GATEWAY and one.lives]
        return found[0] if found else None


def _compose_command() -> list[str]:
    """The plugin, or the program of its own that came before it."""
    if shutil.which("docker"):
        version = ["docker", "compose", "version"]
        asked = subprocess.run(version, capture_output=True, check=False)  # noqa: S603 - nothing of anybody's
        if asked.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise DeployError(
        "there is neither `docker compose` nor `docker-compose` here: install Docker's compose plugin "
        "(docs.docker.com/compose/install), or use another place"
    )


def _explain(command: Sequence[str], said: str) -> str:
    said = printable(said).strip()
    if "permission denied" in said.lower() and "sock" in said:
        return "the Docker engine lets this user do nothing: join the group `docker`, or use rootless Docker"
    if "Cannot connect to the Docker daemon" in said or "Couldn't connect to Docker daemon" in said:
        return "the Docker engine does not answer: start it (systemctl start docker), or say where it is (DOCKER_HOST)"
    last = "\n".join(said.splitlines()[-5:]) or "it said nothing"
    return f"`{' '.join(command[:2])} ...` failed:\n{last}"
