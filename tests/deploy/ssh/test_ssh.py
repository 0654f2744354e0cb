"""Machines behind a real sshd: what is said of those that cannot be entered, and what they can and cannot do to us."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from deploy.command import deploy
from deploy.deployer import DeployError, State
from deploy.deployment import Deployment
from deploy.ssh.connection import Unreachable
from deploy.ssh.deployer import SshDeployer
from deploy.ssh.machine_list import Machine, Machines
from gateway.access.certs_command import certs
from tests.deploy.ssh.sshd import Sshd, machine_of, make_key, running_sshd
from triptych.blocking import Client
from triptych.spec import make_spec

Make = Callable[..., SshDeployer]


@pytest.fixture
def make(tmp_path: Path, sshd: Sshd) -> Iterator[Make]:
    """Makes deployers over machines, which outlive them; what they started is gone in the end."""
    made: list[SshDeployer] = []

    def make_one(*machines: Machine, **more) -> SshDeployer:
        options = more.pop("options", {})
        name = tmp_path.name.replace("[", "-").replace("]", "").lower()[:60]
        made.append(SshDeployer(name, Machines(machines, options), **more))
        return made[-1]

    yield make_one
    for deployer in made:
        deployer.teardown()
        deployer.close()


def folders(sshd: Sshd) -> list[Path]:
    """Of the workers on a machine, oldest first."""
    return sorted((sshd.folder / "deployments").glob("*/*"))


def process_of(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "pid").read_text()))


def test_a_machine_whose_host_key_is_not_known_is_not_trusted(make: Make, sshd: Sshd):
    sshd.known_hosts.write_text("")
    with pytest.raises(Unreachable, match=r"host key is not known here: connect to it once by hand"):
        make(machine_of(sshd)).endpoints()


def test_a_machine_whose_host_key_has_changed_is_not_trusted(make: Make, sshd: Sshd, tmp_path: Path):
    make_key(tmp_path / "other")
    other = (tmp_path / "other.pub").read_text()
    sshd.known_hosts.write_text(f"[{sshd.host}]:{sshd.port} {other}")
    with pytest.raises(Unreachable, match="its host key is not the one that is known here"):
        make(machine_of(sshd)).endpoints()


def test_a_machine_that_does_not_know_the_key_explains_how_to_put_it_there(
    make: Make, sshd: Sshd, tmp_path: Path
):
    make_key(tmp_path / "strangers")
    with pytest.raises(Unreachable, match=r"lets nobody in with .*strangers.*ssh-copy-id"):
        make(machine_of(sshd, key=str(tmp_path / "strangers"))).endpoints()


def test_a_machine_that_is_off_is_said_to_be(make: Make, sshd: Sshd):
    sshd.go_offline()
    with pytest.raises(Unreachable, match="nobody listens for ssh there"):
        make(machine_of(sshd)).endpoints()


def test_a_name_that_nobody_has_is_said_to_be(make: Make, sshd: Sshd):
    with pytest.raises(Unreachable, match="there is no host of that name"):
        make(machine_of(sshd, address="nowhere.invalid")).endpoints()


def test_a_machine_without_triptych_explains_how_to_install_it(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd, triptych="/nowhere/triptych"))
    with pytest.raises(DeployError, match=r"has no command '/nowhere/triptych': install it there"):
        deployer.launch("refiner")


def test_what_is_given_arrives_as_it_is_and_is_not_run(make: Make, sshd: Sshd, tmp_path: Path):
    ran = tmp_path / "ran"
    text = f"$(touch {ran}) `touch {ran}`'; touch {ran}; \"\n touch {ran} # \\"
    deployer = make(machine_of(sshd, environment={"NOTE": text}), options={"refiner": ["--model", text]})

    deployer.launch("refiner")

    (folder,) = folders(sshd)
    worker = process_of(folder)
    assert worker.environ()["NOTE"] == text
    assert text in worker.cmdline()
    assert not ran.exists()


def test_what_a_machine_answers_is_not_run_and_not_shown_to_the_terminal(
    make: Make, sshd: Sshd, tmp_path: Path
):
    ran = tmp_path / "ran"
    deployer = make(machine_of(sshd))
    (worker,) = Deployment(deployer, None).scale({"refiner": 1})
    (folder,) = folders(sshd)
    (folder.parent / f"$(touch {ran.name})").mkdir()
    (folder / "said").write_text(json.dumps({"address": f"$(touch {ran}):\x1b[2J"}))
    (folder / "log").write_text("\x1b]0;title\x07done\n")

    (found,) = deployer.endpoints()

    assert (found.id, found.address, found.state) == (worker.id, "", State.STARTING)
    assert deployer.logs(worker.id) == "]0;titledone"
    assert not list(tmp_path.rglob("ran"))


def test_many_questions_go_through_one_connection(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd))
    deployer.drain(deployer.launch("refiner").id)
    deployer.endpoints()
    assert sshd.num_connections == 1


def test_a_number_that_another_process_has_by_now_is_nobody_of_ours(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd))
    worker = deployer.launch("refiner")
    (folder,) = folders(sshd)
    bystander = subprocess.Popen(["sleep", "60"])
    deployer.stop(worker.id)
    (folder / "pid").write_text(f"{bystander.pid}\n")

    assert not deployer.endpoints()
    deployer.stop(worker.id)
    deployer.teardown()

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_worker_whose_folder_is_gone_is_ended_with_its_deployment(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd))
    deployer.launch("refiner")
    (folder,) = folders(sshd)
    worker = process_of(folder)
    (folder / "pid").unlink()

    assert not deployer.teardown().things

    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert not folders(sshd)


def test_what_runs_on_a_machine_that_cannot_be_reached_is_left_over_with_its_price(
    make: Make, sshd: Sshd, tmp_path: Path
):
    said: list[str] = []
    with running_sshd(tmp_path / "second") as second:
        dear = machine_of(second, name="dear", price_per_hour=3.5, stages=["refiner"])
        deployer = make(machine_of(sshd, stages=["upscaler"]), dear, tell=said.append)
        deployer.launch("upscaler")
        deployer.launch("refiner")

        second.go_offline()
        assert [worker.stage for worker in deployer.endpoints()] == ["upscaler"]
        assert said
        assert "cannot reach dear" in said[0]
        left = deployer.teardown()
        assert "whatever runs on dear" in left.things[0]
        assert (len(left.things), left.price_per_hour) == (1, 3.5)
        second.go_online()
        assert not deployer.teardown().things


def test_the_cheapest_machine_is_filled_first_and_none_beyond_its_number(make: Make, sshd: Sshd):
    machine = machine_of(sshd, workers=1)
    dear = replace(machine, name="dear", price_per_hour=2.0, folder=f"{machine.folder}-dear")
    deployer = make(dear, replace(machine, name="cheap", price_per_hour=0.5))

    assert [deployer.launch("refiner").machine for _ in range(2)] == ["cheap", "dear"]
    with pytest.raises(DeployError, match="no machine has room for another refiner"):
        deployer.launch("refiner")
    assert [offer.price_per_hour for offer in deployer.plan()] == [0.5, 2.0]


def test_workers_of_a_machine_have_its_devices_in_turns(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd, gpus=2))
    for _ in range(3):
        deployer.launch("refiner")
    devices = [process_of(folder).environ()["CUDA_VISIBLE_DEVICES"] for folder in folders(sshd)]
    assert devices == ["0", "1", "0"]


def test_workers_of_a_machine_have_ports_that_a_firewall_can_know(make: Make, sshd: Sshd):
    # Any that is taken will do: whether it can be had is the worker's own concern.
    deployer = make(machine_of(sshd, first_port=sshd.port))
    deployer.launch("refiner")
    (folder,) = folders(sshd)
    command = process_of(folder).cmdline()
    assert command[command.index("--port") + 1] == str(sshd.port)
    assert f"-{sshd.port}-" in folder.name


def test_a_worker_that_ends_is_replaced_while_the_deployment_is_kept(make: Make, sshd: Sshd, tmp_path: Path):
    deployer = make(machine_of(sshd))
    deployment = Deployment(deployer, tmp_path / "workers.json")
    (lost,) = deployment.scale({"refiner": 1})

    def rest() -> None:
        workers = deployer.endpoints()
        if [worker.id for worker in workers] == [lost.id]:
            deployer.stop(lost.id)
        elif any(worker.state is State.SERVING for worker in workers):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deployment.keep(rest)
    (found,) = deployer.endpoints()
    assert found.stage == "refiner"
    assert found.id != lost.id


def test_a_deployment_of_another_user_on_the_same_login_is_not_touched(
    make: Make, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = make(machine_of(sshd))
    worker = mine.launch("upscaler")
    monkeypatch.setenv("TRIPTYCH_DEPLOY_OWNER", "bob@desk")
    theirs = SshDeployer(mine.name, Machines([machine_of(sshd)], {}))
    try:
        for change in (
            lambda: theirs.launch("refiner"),
            lambda: theirs.drain(worker.id),
            lambda: theirs.stop(worker.id),
            theirs.teardown,
            theirs.check_owner,
        ):
            with pytest.raises(
                DeployError, match=r"belongs to .*, and you are bob@desk: choose another --name"
            ):
                change()
        assert [one.id for one in theirs.endpoints()] == [worker.id]
        # The process has its owner, too.
        shutil.rmtree(sshd.folder / "deployments")
        with pytest.raises(DeployError, match="belongs to"):
            theirs.teardown()
    finally:
        theirs.close()
        monkeypatch.delenv("TRIPTYCH_DEPLOY_OWNER")


def test_a_log_is_followed_until_its_worker_ends(make: Make, sshd: Sshd, tmp_path: Path):
    deployer = make(machine_of(sshd))
    (worker,) = Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})
    lines = deployer.follow_log(worker.id, num_lines=None)
    assert "serving upscaler" in next(lines)
    deployer.drain(worker.id)
    assert any("stopping" in line for line in lines)


def test_a_command_may_be_named_from_the_users_home(make: Make, sshd: Sshd):
    with pytest.raises(DeployError, match="has no command '~/nowhere/triptych'"):
        make(machine_of(sshd, triptych="~/nowhere/triptych")).launch("refiner")


def test_nothing_listens_beyond_loopback_without_certificates(make: Make, sshd: Sshd):
    deployer = make(machine_of(sshd, host="gpu-7.example.org"))
    with pytest.raises(
        DeployError, match="others could use the workers of loopback: make certificates .*gpu-7"
    ):
        deployer.launch("refiner")


def test_a_worker_gets_its_own_certificate_and_answers_its_gateway_alone(
    make: Make, sshd: Sshd, tmp_path: Path
):
    certificates = tmp_path / "certificates"
    assert CliRunner().invoke(certs, [str(certificates)]).exit_code == 0
    deployer = make(machine_of(sshd), certificates=certificates)

    Deployment(deployer, None).scale({"refiner": 1})

    (folder,) = folders(sshd)
    assert {path.name for path in folder.iterdir()} >= {"ca.crt", "stage.crt", "stage.key"}
    assert (folder / "stage.key").stat().st_mode & 0o777 == 0o600
    strangers = make(machine_of(sshd))
    (worker,) = strangers.endpoints()
    assert worker.state is State.STARTING
    assert "does not answer from here" in worker.note


def test_a_pipeline_on_machines_makes_a_picture_and_is_taken_down(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    machine = machine_of(sshd, price_per_hour=0.4)
    listed = tmp_path / "machines.toml"
    fields = {name: value for name, value in vars(machine).items() if value not in (0, False, {}, "")}
    listed.write_text("[[machine]]\n" + "".join(f"{key} = {json.dumps(fields[key])}\n" for key in fields))

    def triptych(*arguments: str) -> str:
        done = CliRunner().invoke(deploy, ["ssh", "--machines", str(listed), *arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert "loopback: a machine" in triptych("plan")
    said = triptych("up", "--port", "0", "--http-port", "0")
    try:
        address = said.rpartition("gateway serves at ")[2].partition(",")[0]
        with Client(address) as client:
            made = client.run(make_spec("a red house", candidates=1, variations=1, seed=7)).result()
        assert [picture.stage for picture in made.pictures] == ["generate", "refine", "upscale"]
        triptych("scale", "refiner", "2")
        assert triptych("status").splitlines()[-1] == "all workers cost 0.4 an hour"
        assert "GET" not in triptych("logs", "gateway")
    finally:
        assert "nothing is left" in triptych("down")
    assert not folders(sshd)
