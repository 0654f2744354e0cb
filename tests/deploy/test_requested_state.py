"""`triptych deploy`: the requested state is stored, compared with and restored, and belongs to its creator."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from deploy.command import add_commands
from deploy.deployer import DeployError, Leftovers, Offer, State, Worker
from deploy.deployment import Deployment
from deploy.gateway import LocalGateway, Started
from deploy.log_lines import Since, lines_since
from deploy.owner import foreign_error
from deploy.place import Place
from deploy.requested_state import GatewayRequest, RequestedState
from deploy.tagged_processes import TAG, TaggedProcesses


@dataclass
class ScriptedTarget:
    """A target whose workers serve at once and end when a test asks for it; both a deployer and a gateway."""

    name: str = "tested"
    owner: str = ""
    workers: list[Worker] = field(default_factory=list)
    gateway: GatewayRequest | None = None
    num_launches: int = 0

    def plan(self) -> Sequence[Offer]:
        return []

    def launch(self, stage: str) -> Worker:
        self.num_launches += 1
        worker = Worker(f"w{self.num_launches}", stage, f"127.0.0.1:{self.num_launches}", State.SERVING)
        self.workers.append(worker)
        return worker

    def endpoints(self) -> Sequence[Worker]:
        return list(self.workers)

    def check_owner(self) -> None:
        if self.owner:
            raise foreign_error(self.name, self.owner)

    def drain(self, worker_id: str) -> None:
        self.stop(worker_id)

    def stop(self, worker_id: str) -> None:
        self.workers = [one for one in self.workers if one.id != worker_id]

    def teardown(self) -> Leftovers:
        self.workers = []
        return Leftovers()

    def logs(self, worker_id: str = "", *, num_lines: int = 50) -> str:
        return "\n".join(self.follow_log(worker_id))

    def follow_log(self, worker_id: str = "", *, num_lines: int | None = 50) -> Iterator[str]:
        yield from (
            "2026-01-31 11:00:00,000 I old",
            "2026-01-31 12:00:00,000 I new",
            "a line of its traceback",
        )

    def start(self, request: GatewayRequest) -> Started:
        self.gateway = request
        return Started("gateway serves", "127.0.0.1:4001", "127.0.0.1:4002")

    def is_running(self) -> bool:
        return self.gateway is not None

    def problem(self) -> str:
        return "" if self.gateway else "it does not run"


class ScriptedGateway(ScriptedTarget):
    def stop(self) -> None:  # type: ignore[override]
        self.gateway = None


@dataclass
class Scene:
    target: ScriptedTarget
    gateway: ScriptedGateway
    state: RequestedState
    list_path: Path

    def triptych(self, *arguments: str) -> Result:
        @click.group()
        @click.pass_context
        def place(ctx: click.Context) -> None:
            ctx.obj = Place(self.target, self.gateway, self.list_path, self.state)

        add_commands(place)
        return CliRunner().invoke(place, arguments)

    @property
    def deployment(self) -> Deployment:
        return Deployment(self.target, self.list_path, state=self.state)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(
        ScriptedTarget(), ScriptedGateway(), RequestedState(tmp_path / "kept"), tmp_path / "workers.json"
    )


def test_status_lists_what_is_missing_of_what_was_requested_and_fails(scene: Scene):
    assert scene.triptych("up", "--refiners", "2").exit_code == 0
    assert scene.triptych("status").exit_code == 0

    scene.target.stop("w2")
    scene.target.stop("w3")
    done = scene.triptych("status")
    assert done.exit_code == 1
    assert "refiner 0 of 2" in done.output
    assert "generator 1 of 1" in done.output

    scene.triptych("scale", "refiner", "1")
    assert scene.triptych("status").exit_code == 0


def test_status_fails_while_the_gateway_does_not_serve(scene: Scene):
    scene.triptych("up")
    scene.gateway.stop()
    done = scene.triptych("status")
    assert done.exit_code == 1
    assert "gateway 0 of 1  (it does not run)" in done.output
    counts = [json.loads(line) for line in scene.triptych("status", "--json").stdout.splitlines()][-4:]
    assert counts[-1] == {"service": "gateway", "serving": 0, "requested": 1}


def test_a_start_that_fails_leaves_what_was_requested(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    def fail(stage: str) -> Worker:
        raise DeployError("no room")

    monkeypatch.setattr(scene.target, "launch", fail)
    assert scene.triptych("up").exit_code != 0
    assert "generator 0 of 1" in scene.triptych("status").output


def test_watch_starts_the_missing_workers_and_a_dead_gateway_where_it_was(scene: Scene):
    scene.triptych("up", "--port", "0", "--http-port", "0", "--http-allowed-host", "pictures.example.org")
    scene.target.workers, scene.gateway.gateway = [], None
    looks = iter(range(2))

    def rest() -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scene.deployment.keep(rest, scene.gateway)

    assert sorted(one.stage for one in scene.target.workers) == ["generator", "refiner", "upscaler"]
    assert scene.gateway.gateway == GatewayRequest(4001, 4002, ("pictures.example.org",))


def test_watch_takes_up_a_new_count_and_ends_with_the_deployment(scene: Scene):
    scene.triptych("up")

    def rest() -> None:
        if scene.state.read().workers["refiner"] == 1:
            scene.state.request_workers({"refiner": 3})
        elif len(scene.target.workers) == 5:
            scene.triptych("down")

    scene.deployment.keep(rest, scene.gateway)
    assert not scene.target.workers


@pytest.mark.parametrize(
    "command", [["up"], ["scale", "refiner", "2"], ["watch", "--every", "1"], ["down"]], ids=lambda it: it[0]
)
def test_nothing_of_another_users_deployment_is_changed(scene: Scene, command: list[str]):
    scene.triptych("up")
    scene.target.owner = "alice@laptop"
    before = (list(scene.target.workers), scene.gateway.gateway, scene.state.read())

    done = scene.triptych(*command)

    assert "the deployment 'tested' belongs to alice@laptop" in str(done.exception)
    assert (list(scene.target.workers), scene.gateway.gateway, scene.state.read()) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_root_does_not_find_the_processes_of_another_user(tmp_path: Path):
    with subprocess.Popen(
        ["/bin/sh", "-c", "echo ready; read wait", "serve", "refiner"],
        env={TAG: "shared"},
        user=65534,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as theirs:
        try:
            assert theirs.stdout is not None
            theirs.stdout.readline()
            assert not list(TaggedProcesses("shared", tmp_path))
        finally:
            theirs.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_root_does_not_use_the_folder_of_another_user(scene: Scene, tmp_path: Path):
    scene.triptych("up")
    os.chown(tmp_path / "kept", 65534, 65534)
    done = scene.triptych("down")
    assert "and so does this deployment" in str(done.exception)
    assert len(scene.target.workers) == 3


def test_down_lists_what_it_ends(scene: Scene):
    scene.triptych("up")
    said = scene.triptych("down").output.splitlines()
    assert said[:4] == [
        "ends generator w1 on a machine",
        "ends refiner w2 on a machine",
        "ends upscaler w3 on a machine",
        "ends the gateway",
    ]
    assert scene.state.read() is None


def test_logs_begin_with_the_first_line_since_a_time(scene: Scene):
    done = scene.triptych("logs", "gateway", "--since", "2026-01-31T11:30:00")
    assert done.output.splitlines() == ["2026-01-31 12:00:00,000 I new", "a line of its traceback"]
    assert scene.triptych("logs", "w1", "-f", "--since", "2026-01-31T13:00:00").output == ""


def test_since_takes_ages_and_times():
    now = datetime.now(UTC)
    age = Since().convert("1h30m", None, None)
    assert timedelta(minutes=89) < now - age < timedelta(minutes=91)
    assert Since().convert("2026-01-31T12:00:00Z", None, None) == datetime(2026, 1, 31, 12, tzinfo=UTC)
    for wrong in ("yesterday", "", "10 m", "-5s"):
        with pytest.raises(click.BadParameter, match="expected an age such as 90s"):
            Since().convert(wrong, None, None)


def test_json_lines_have_their_time():
    lines = ['{"time": "2026-01-31T11:00:00.000Z"}', '{"time": "2026-01-31T12:00:00.000Z"}']
    assert list(lines_since(lines, datetime(2026, 1, 31, 11, 30, tzinfo=UTC))) == lines[1:]


def test_a_followed_log_goes_on_until_the_process_ends(tmp_path: Path):
    processes = TaggedProcesses(f"follows {tmp_path.name}", tmp_path)
    gateway = LocalGateway(processes, ["--journal", "none", "--store", str(tmp_path / "store")])
    gateway.start(GatewayRequest(0, 0))
    try:
        assert gateway.problem() == ""
        lines = gateway.follow_log(num_lines=None)
        next(lines)
    finally:
        gateway.stop()
    assert "stopping" in "\n".join(lines)
    assert gateway.problem() == "it does not run"
    assert "stopping" in gateway.logs(num_lines=5)


def test_what_is_kept_is_for_its_owner_alone(scene: Scene, tmp_path: Path):
    previous = os.umask(0)
    try:
        RequestedState(tmp_path / "a" / "b").request_workers({"refiner": 1})
        processes = TaggedProcesses("private", tmp_path / "c" / "d")
        processes.start("painter", []).wait(60)
    finally:
        os.umask(previous)
    for path in [*(tmp_path / "a").rglob("*"), *(tmp_path / "c").rglob("*"), tmp_path / "a", tmp_path / "c"]:
        assert not path.stat().st_mode & 0o077, path
