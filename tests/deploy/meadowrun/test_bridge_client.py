"""Our side of the bridge to Meadowrun, in front of a process that answers by a script; the other side: test_meadowrun.py."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.deployer import DeployError, Offer, State
from deploy.deployment import Deployment
from deploy.meadowrun import virtualenv
from deploy.meadowrun.bridge_client import Bridge
from deploy.meadowrun.deployer import MeadowrunDeployer, hourly, lines_after
from deploy.meadowrun.jobs import Settings
from gateway.access.certs_command import certs

SCRIPTED = Path(__file__).with_name("scripted_bridge.py")


class Scripted(Bridge):
    """A bridge, what it was asked, and what it said."""

    def __init__(self, folder: Path, answers: dict[str, Any]) -> None:
        self.script, self.log = folder / "script.json", folder / "bridge.log"
        self._asked = folder / "asked.jsonl"
        self.said: list[str] = []
        self.rewrite(answers)
        command = [sys.executable, str(SCRIPTED), str(self.script), str(self._asked)]
        super().__init__(lambda: command, self.log, self.said.append)

    def rewrite(self, answers: dict[str, Any]) -> None:
        """Counts from the next process on."""
        self.script.write_text(json.dumps(answers))

    def asked(self, do: str) -> list[dict[str, Any]]:
        questions = [json.loads(line) for line in self._asked.read_text().splitlines()]
        return [one for one in questions if one["do"] == do]


Start = Callable[[dict[str, Any]], Scripted]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Scripted] = []

    def start_one(answers: dict[str, Any]) -> Scripted:
        started.append(Scripted(tmp_path, answers))
        return started[-1]

    yield start_one
    for bridge in started:
        bridge.close(timeout_s=30)


def deployer_of(bridge: Bridge, **settings: Any) -> MeadowrunDeployer:
    defaults = {"image": "registry/triptych-{stage}:1", "insecure": True}
    return MeadowrunDeployer("tested", Settings("us-east-2", **{**defaults, **settings}), bridge)


def machine(**tags: str) -> dict[str, Any]:
    """One with a worker, as the bridge reports it."""
    tags = {
        "deployment": "tested",
        "worker": "w1",
        "stage": "refiner",
        "port": "50052",
        "price": "0.16",
        "started": str(time.time_ns()),
        "state": "launching",
        **tags,
    }
    return {"instance": "i-1", "address": "", "kind": "g4dn.xlarge", "is_spot": True, "tags": tags}


def test_an_answer_finds_its_question_though_another_one_came_first(start: Start):
    bridge = start({"first": {"done": 1, "with": "second"}, "second": {"done": 2}})
    _, first = bridge.begin("first")
    assert bridge.ask("second") == 2
    assert first.result(timeout=120) == 1


def test_what_meadowrun_prints_is_reported(start: Start):
    bridge = start({"install": {"said": "Installing Meadowrun in us-east-2", "done": None}})
    bridge.ask("install")
    assert bridge.said == ["Installing Meadowrun in us-east-2"]


def test_a_refusal_is_an_error_in_its_own_words(start: Start):
    with pytest.raises(DeployError, match="^there is no such bucket$"):
        start({"grant": {"failed": "there is no such bucket"}}).ask("grant")


def test_a_bridge_that_ends_fails_what_was_asked_with_its_last_words_and_starts_again(start: Start):
    bridge = start({"offers": "dies", "machines": "never"})
    _, waiting = bridge.begin("machines")
    with pytest.raises(DeployError, match="(?s)process has ended:.*Meadowrun has had enough"):
        bridge.ask("offers")
    with pytest.raises(DeployError, match="process has ended"):
        waiting.result(timeout=120)
    bridge.rewrite({"offers": {"done": []}})
    assert bridge.ask("offers") == []


def test_a_bridge_that_does_not_start_explains_why(tmp_path: Path):
    bridge = Bridge(lambda: [sys.executable, "-c", "import there_is_no_meadowrun"], tmp_path / "log")
    with pytest.raises(DeployError, match="(?s)Meadowrun does not start:.*there_is_no_meadowrun"):
        bridge.ask("offers")


def test_a_launch_asks_for_a_gpu_and_its_memory_and_for_one_value_of_ports(start: Start):
    bridge = start({"launch": "never"})
    deployer = deployer_of(bridge)
    for stage in ("generator", "refiner"):
        deployer.launch(stage)
    deployer.teardown()
    launches = bridge.asked("launch")
    assert {(one["resources"]["gpus"], one["resources"]["gpu_memory"]) for one in launches} == {(1, 12)}
    assert {tuple(one["job"]["ports"]) for one in launches} == {("50051-50053",)}


def test_an_image_is_given_the_options_of_its_entry_point(start: Start):
    bridge = start({"launch": "never"})
    deployer = deployer_of(bridge, options={"refiner": ["--model", "glid-3-xl"]})
    deployer.launch("refiner")
    deployer.teardown()
    (launch,) = bridge.asked("launch")
    assert launch["job"]["image"] == "registry/triptych-refiner:1"
    command = " ".join(launch["job"]["command"])
    assert command == (
        "--host 0.0.0.0 --port 50052 --grace 100 --spot-notices http://169.254.169.254 --model glid-3-xl --insecure"
    )
    assert launch["job"]["environment"]["TRIPTYCH_MACHINE_CACHE"] == "/var/meadowrun/machine_cache"


def test_a_worker_gets_its_own_certificate_and_no_other(start: Start, tmp_path: Path):
    folder = tmp_path / "certificates"
    hostname = "*.us-east-2.compute.amazonaws.com"
    CliRunner().invoke(certs, [str(folder), "--hostname", hostname], catch_exceptions=False)
    bridge = start({"launch": "never"})
    deployer = deployer_of(bridge, certificates=folder, insecure=False)
    worker = deployer.launch("refiner")
    deployer.teardown()
    (launch,) = bridge.asked("launch")
    there = f"/var/meadowrun/machine_cache/triptych-{worker.id}"
    assert launch["files"] == {
        f"{there}/ca.crt": (folder / "ca.crt").read_text(),
        f"{there}/stage.crt": (folder / "refiner.crt").read_text(),
        f"{there}/stage.key": (folder / "refiner.key").read_text(),
    }
    assert f"--tls-client-ca {there}/ca.crt" in " ".join(launch["job"]["command"])
    assert "--insecure" not in launch["job"]["command"]


def test_workers_that_everybody_could_use_are_not_launched(start: Start):
    with pytest.raises(DeployError, match="triptych certs.*or say --insecure"):
        deployer_of(start({}), insecure=False).launch("refiner")


def test_workers_have_to_be_started_from_something(start: Start):
    with pytest.raises(DeployError, match=r"--image registry/triptych-\{stage\}:tag, or .* --interpreter"):
        deployer_of(start({}), image="").launch("refiner")


def test_a_launch_that_fails_is_an_error_in_meadowruns_words(start: Start, tmp_path: Path):
    answers = {"launch": {"failed": "no capacity in us-east-2"}, "machines": {"done": []}}
    deployment = Deployment(deployer_of(start(answers)), tmp_path / "workers.json")
    with pytest.raises(DeployError, match="(?s)ended instead of serving:.*no capacity in us-east-2"):
        deployment.scale({"refiner": 1})


def test_a_machine_whose_launch_was_cut_off_is_given_back(start: Start):
    old = str(time.time_ns() - 3600 * 10**9)
    bridge = start({"machines": {"done": [machine(started=old)]}, "give_back": {"done": []}})
    deployer = deployer_of(bridge)
    assert not deployer.endpoints()
    assert bridge.asked("give_back")[0]["instances"] == ["i-1"]


def test_a_machine_that_is_being_launched_elsewhere_starts(start: Start):
    (worker,) = deployer_of(start({"machines": {"done": [machine()]}})).endpoints()
    assert (worker.state, worker.address, worker.price_per_hour) == (State.STARTING, "", 0.16)


def test_a_worker_that_does_not_answer_and_runs_is_left_to_the_gateway(start: Start):
    there = {**machine(state="serving", job="j1"), "address": "127.0.0.1"}
    bridge = start({"machines": {"done": [there]}, "look": {"done": "running"}})
    (worker,) = deployer_of(bridge).endpoints()
    assert worker.state is State.SERVING
    assert "does not answer from here" in worker.note


def test_a_log_is_the_workers_own_words_though_the_clean_up_behind_it_failed(start: Start):
    behind = [
        "Traceback (most recent call last):",
        '  File "/var/meadowrun/deallocate_jobs.py", line 90, in main',
    ]
    said = ["loading", "Error: no model 'nowhere'", *behind, "ValueError: not on EC2"]
    there = {**machine(job="j1"), "address": "gpu"}
    bridge = start({"machines": {"done": [there]}, "log": {"done": "\n".join(said) + "\n"}})
    assert deployer_of(bridge).logs("w1", num_lines=1) == "Error: no model 'nowhere'"


def test_a_machine_of_a_worker_that_has_ended_is_given_back_and_its_log_kept(start: Start):
    there = {**machine(state="started", job="j1"), "address": "127.0.0.1"}
    bridge = start(
        {
            "machines": {"done": [there]},
            "look": {"done": "ended"},
            "log": {"done": "Error: no model 'nowhere'\n"},
            "give_back": {"done": []},
        }
    )
    assert not deployer_of(bridge).endpoints()
    assert bridge.asked("give_back")[0]["instances"] == ["i-1"]


def test_what_a_teardown_cannot_end_is_reported_with_its_price(start: Start):
    bridge = start({"machines": {"done": [machine()]}, "give_back": {"done": ["i-1"]}})
    left = deployer_of(bridge).teardown()
    assert (left.things, left.price_per_hour) == (["i-1 (g4dn.xlarge)"], 0.16)


def test_evictions_a_month_are_offered_as_evictions_an_hour(start: Start):
    offer = {
        "machine": "g5.xlarge",
        "is_spot": True,
        "price": 0.3,
        "eviction_percent": 50.0,
        "about": "a GPU",
    }
    (offered,) = deployer_of(start({"offers": {"done": [offer]}})).plan()
    assert offered == Offer("g5.xlarge", True, 0.3, hourly(50.0), "a GPU; 50% evicted a month")
    assert (1.0 - hourly(50.0)) ** 730 == pytest.approx(0.5)


def test_meadowruns_environment_is_pinned_to_the_last_library():
    lines = virtualenv.CONSTRAINTS.read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert f"meadowrun=={virtualenv.VERSION}" in pins
    assert all("==" in line for line in pins)


def test_machines_of_another_user_are_not_touched(start: Start):
    bridge = start({"machines": {"done": [machine(owner="alice@laptop")]}})
    deployer = deployer_of(bridge)
    for change in (
        lambda: deployer.launch("upscaler"),
        lambda: deployer.drain("w1"),
        lambda: deployer.stop("w1"),
        deployer.teardown,
    ):
        with pytest.raises(DeployError, match="belongs to alice@laptop"):
            change()
    deployer.endpoints()
    assert not bridge.asked("give_back")
    assert not bridge.asked("launch")


def test_lines_after_the_known_end_of_a_log_are_new():
    assert lines_after(["a", "b"], ["a", "b", "c"]) == ["c"]
    assert lines_after(["a", "b"], ["b", "c"]) == ["b", "c"]
    assert lines_after([], ["a"]) == []
