"""What `triptych deploy compose` prints where there is no engine to deploy to. The rest needs one: tests/compose."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.command import deploy
from deploy.compose.deployer import OWNER, ComposeDeployer, ComposeGateway
from deploy.deployer import DeployError
from deploy.requested_state import GatewayRequest


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def says(path: Path, words: str) -> None:
    """A program that fails with these words, as docker's own does."""
    path.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    path.chmod(0o755)


def test_without_docker_it_explains_what_to_install(programs: Path):
    with pytest.raises(DeployError, match="there is no `docker` here: install Docker Engine"):
        ComposeDeployer("tested").plan()


def test_an_engine_that_does_not_run_is_said_to_be(programs: Path):
    says(programs / "docker", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")
    with pytest.raises(DeployError, match="the Docker engine does not answer: start it"):
        ComposeDeployer("tested").endpoints()


def test_an_engine_that_lets_nobody_in_is_said_to(programs: Path):
    says(
        programs / "docker",
        "permission denied while trying to connect to the docker API at unix:///var/run/docker.sock",
    )
    with pytest.raises(DeployError, match="lets this user do nothing: join the group `docker`"):
        ComposeDeployer("tested").endpoints()


def test_other_words_of_the_engine_are_passed_on_without_what_a_terminal_would_obey(programs: Path):
    says(programs / "docker", "no space left on device\033[2J")
    with pytest.raises(DeployError, match=r"`docker ps ...` failed:\nno space left on device\[2J"):
        ComposeDeployer("tested").endpoints()


def test_without_compose_it_explains_what_to_install(programs: Path):
    (programs / "docker").write_text('#!/bin/sh\n[ "$1" != compose ]\n')
    (programs / "docker").chmod(0o755)
    with pytest.raises(DeployError, match="neither `docker compose` nor `docker-compose`"):
        ComposeDeployer("tested").launch("refiner")


def test_a_compose_file_that_is_not_there_is_named(programs: Path, tmp_path: Path):
    (programs / "docker").write_text("#!/bin/sh\n")
    (programs / "docker").chmod(0o755)
    with pytest.raises(DeployError, match=r"there is no .*elsewhere.yml: run this in a copy of the source"):
        ComposeDeployer("tested", [tmp_path / "elsewhere.yml"]).launch("refiner")


@pytest.mark.parametrize("name", ["", "../other", "Two words", "-f", "a" * 64])
def test_a_name_that_could_be_no_tag_is_refused(name: str):
    done = CliRunner().invoke(deploy, ["compose", "--name", name, "status"])
    assert isinstance(done.exception, DeployError)
    assert "a deployment's name is 1 to 63 of a-z" in str(done.exception)


def test_a_project_of_another_user_is_not_touched(programs: Path):
    container = {"Id": "0" * 64, "Name": "/one", "Created": "", "Config": {"Labels": {OWNER: "alice@laptop"}}}
    (programs / "docker").write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"ps) echo {'0' * 64} ;;\n"
        f"inspect) echo '{json.dumps([container])}' ;;\n"
        "volume) exit 0 ;;\n"
        f'*) echo "$@" >>{programs}/changes ;;\n'
        "esac\n"
    )
    (programs / "docker").chmod(0o755)
    deployer = ComposeDeployer("tested")
    gateway = ComposeGateway(deployer.engine)
    for change in (
        lambda: deployer.launch("refiner"),
        lambda: deployer.drain("0" * 12),
        lambda: deployer.stop("0" * 12),
        deployer.teardown,
        lambda: gateway.start(GatewayRequest(0, 0)),
        gateway.stop,
    ):
        with pytest.raises(DeployError, match="the deployment 'tested' belongs to alice@laptop"):
            change()
    assert not (programs / "changes").exists()
