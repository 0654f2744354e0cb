"""What every place must do for `triptych deploy`, on real workers: the upscaler, whose network is the smallest.

On machines behind ssh a network that only counts stands in for it.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from deploy.compose.build_context import compose_folder
from deploy.compose.deployer import COMPOSE_FILE, ComposeDeployer
from deploy.deployer import Deployer, DeployError, State, Worker, workers_file
from deploy.deployment import Deployment
from deploy.local.deployer import LocalDeployer
from deploy.ssh.deployer import SshDeployer
from deploy.ssh.machine_list import Machines
from tests.deploy.ssh.sshd import machine_of

Make = Callable[..., Deployer]


def make_local(request: pytest.FixtureRequest, folder: Path, name: str, upscaler: Sequence[str]) -> Deployer:
    return LocalDeployer(name, folder, {"upscaler": upscaler})


def make_ssh(request: pytest.FixtureRequest, folder: Path, name: str, upscaler: Sequence[str]) -> Deployer:
    machine = machine_of(request.getfixturevalue("sshd"))
    return SshDeployer(name, Machines([machine], {"upscaler": upscaler}))


def make_compose(
    request: pytest.FixtureRequest, folder: Path, name: str, upscaler: Sequence[str]
) -> Deployer:
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no container engine answers here")
    asked = folder.with_suffix(".yml")
    asked.write_text(json.dumps({"services": {"upscaler": {"command": list(upscaler)}}}))
    deployer = ComposeDeployer(name, [compose_folder() / COMPOSE_FILE, asked])
    deployer.delete_volumes = True
    return deployer


def make_meadowrun(
    request: pytest.FixtureRequest, folder: Path, name: str, upscaler: Sequence[str]
) -> Deployer:
    deployer: Deployer = request.getfixturevalue("cloud").deployer(name, options={"upscaler": upscaler})
    return deployer


PLACES: dict[str, Callable[[pytest.FixtureRequest, Path, str, Sequence[str]], Deployer]] = {
    "local": make_local,
    "ssh": make_ssh,
    "compose": make_compose,
    "meadowrun": make_meadowrun,
}
SLOW = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("compose", "meadowrun")]


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.matrix), *SLOW])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes deployers of one place; whatever they started is gone in the end."""
    made: list[Deployer] = []
    if request.param == "ssh":
        # The machine outlives the deployers, so that they can take everything away.
        request.getfixturevalue("sshd")

    def make_one(name: str = "tested", upscaler: Sequence[str] = ()) -> Deployer:
        tag = f"{tmp_path.name}-{name}".lower()
        made.append(PLACES[request.param](request, tmp_path / name, tag, upscaler))
        return made[-1]

    yield make_one
    for deployer in made:
        assert not deployer.teardown().things
        if isinstance(deployer, SshDeployer):
            deployer.close()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def list_path(tmp_path: Path) -> Path:
    return tmp_path / "workers.json"


def listed(path: Path) -> list[str]:
    return json.loads(path.read_text())["upscaler"]


def test_a_deployment_is_scaled_up_and_down_and_taken_away(make: Make, list_path: Path, lines: list[str]):
    deployer = make()
    deployment = Deployment(deployer, list_path, lines.append)

    serving = deployment.scale({"upscaler": 2})
    assert [worker.stage for worker in serving] == ["upscaler", "upscaler"]
    assert listed(list_path) == [worker.address for worker in deployer.endpoints()]

    deployment.scale({"upscaler": 1})
    oldest, newest = serving
    assert listed(list_path) == [oldest.address]
    assert f"upscaler {newest.id} drains" in lines

    assert not deployment.down().things
    assert not deployer.endpoints()


def test_workers_are_found_again_when_every_file_is_lost(make: Make, list_path: Path, tmp_path: Path):
    deployer = make()
    serving = Deployment(deployer, list_path).scale({"upscaler": 1})
    # Of this machine's files: what a place itself keeps is not ours to lose.
    shutil.rmtree(tmp_path / "tested", ignore_errors=True)
    list_path.unlink()

    found = make()

    assert found.endpoints() == serving
    Deployment(found, list_path).write_list()
    assert listed(list_path) == [serving[0].address]


def test_a_deployment_sees_and_ends_only_its_own(make: Make, list_path: Path):
    mine, other = make("mine"), make("other")
    Deployment(mine, list_path).scale({"upscaler": 1})

    assert not other.endpoints()
    other.teardown()

    assert [worker.state for worker in mine.endpoints()] == [State.SERVING]


def test_a_worker_that_is_stopped_is_gone_at_once(make: Make):
    deployer = make()
    worker = deployer.launch("upscaler")
    deployer.stop(worker.id)
    assert not deployer.endpoints()
    deployer.stop(worker.id)
    deployer.drain(worker.id)


def test_a_worker_that_cannot_serve_is_an_error_with_its_last_words(make: Make, list_path: Path):
    deployment = Deployment(make(upscaler=["--model", "nowhere"]), list_path)
    with pytest.raises(DeployError, match="(?s)ended instead of serving.*no upscaler model 'nowhere'"):
        deployment.scale({"upscaler": 1})


def test_a_stage_that_there_is_not_is_refused(make: Make, list_path: Path):
    with pytest.raises(DeployError, match="expected one of generator, refiner, upscaler"):
        Deployment(make(), list_path).scale({"dreamer": 1})


def test_a_plan_lists_what_a_worker_would_cost(make: Make):
    assert all(offer.price_per_hour >= 0 and offer.machine for offer in make().plan())


def test_a_log_of_nobody_is_an_error(make: Make):
    with pytest.raises(DeployError, match="no log of 4711"):
        make().logs("4711")


def test_a_draining_worker_is_on_no_list():
    workers = [
        Worker("1", "refiner", "10.0.0.1:50052", State.SERVING),
        Worker("2", "refiner", "10.0.0.2:50052", State.DRAINING),
        Worker("3", "refiner", "", State.STARTING),
    ]
    assert workers_file(workers) == {"generator": [], "refiner": ["10.0.0.1:50052"], "upscaler": []}
