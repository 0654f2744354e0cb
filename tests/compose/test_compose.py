"""`triptych deploy compose` on a real engine: from the images that it builds to the nothing that it leaves.

One deployment for all of it. What is measured on the way is printed (-s shows it).
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.compose.deployer import Container, Engine
from deploy.deployer import STAGES
from tests.deploy.kustomized import read_documents
from triptych.blocking import Client
from triptych.result import Picture
from triptych.spec import make_spec
from triptych.v1.stage_pb2 import STAGE_REFINE

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
NAME = f"tested-{uuid.uuid4().hex[:6]}"
PATIENCE_S = 900.0
# What the gateway promises: it asks for names every two seconds, and for workers' health.
SEEN_WITHIN_S = 15.0
GB = 2**30
# In a batch of another size sums are taken in another order: tests/test_same_picture.py. An enlargement, whose original
# may differ by a level, may by another one.
FEW_LEVELS, FEW_PIXELS = 2, 0.02
MANY_STEPS = 60


@dataclass
class Deployed:
    address: str
    page: str
    engine: Engine

    def of(self, service: str) -> list[Container]:
        return [one for one in self.engine.containers() if one.service == service and one.lives]

    def num_healthy(self, stage: str) -> int:
        """As the gateway reports to Prometheus."""
        (gateway,) = self.of("gateway")
        host = gateway.address.partition(":")[0]
        with urllib.request.urlopen(f"http://{host}:50070/metrics", timeout=5) as answer:
            said = answer.read().decode()
        found = re.search(rf'triptych_healthy_workers{{stage="{stage}"}} (\S+)', said)
        return int(float(found[1])) if found else 0


def triptych(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "deploy", "compose", "--name", NAME, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(holds: Callable[[], bool], within_s: float) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < within_s, f"not within {within_s:g} s"
        time.sleep(0.2)
    return time.monotonic() - began


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.open()).astype(int)


def tell(what: str, figure: float | str) -> None:
    shown = f"{figure:.1f} s" if isinstance(figure, float) else figure
    print(f"\n  {what}: {shown}", flush=True)


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    """A deployment of one worker of each stage. In the end nothing of it may be left."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.skip("no container engine answers here")
    engine = Engine(f"triptych-{NAME}", [ROOT / "docker-compose.yml"])
    began = time.monotonic()
    engine.build()
    tell("built", time.monotonic() - began)
    began = time.monotonic()
    try:
        said = triptych("up", "--port", "0", "--http-port", "0")
        tell("up until all are healthy", time.monotonic() - began)
        address, page = re.findall(r"127\.0\.0\.1:\d+", said)[-2:]
        yield Deployed(address, page, engine)
    finally:
        began = time.monotonic()
        said = triptych("down", "--volumes")
        tell("down", time.monotonic() - began)
    assert "nothing is left" in said
    assert not engine.containers()
    assert not engine.labelled("network")
    assert not engine.labelled("volume")


@contextmanager
def load(deployed: Deployed) -> Iterator[list[int]]:
    """One run after the other, until the block ends; gives the number of pictures of each that is done."""
    done: list[int] = []
    stop = threading.Event()

    def work() -> None:
        with Client(deployed.address) as client:
            while not stop.is_set():
                result = client.run(make_spec("a blue boat", candidates=2, variations=6, seed=3)).result()
                assert result.state == "succeeded"
                done.append(len(result.pictures))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def announced_at(deployed: Deployed, container: Container) -> float:
    """When a service said that it serves, by the engine's clock, which is ours."""
    for line in deployed.engine.docker("logs", "--timestamps", container.id).splitlines():
        at, _, said = line.partition(" ")
        if said.startswith('{"service"'):
            return datetime.fromisoformat(at[:26] + "+00:00").timestamp()
    raise AssertionError(f"{container.name} never said that it serves")


def test_a_picture_comes_through_the_containers(deployed: Deployed):
    began = time.monotonic()
    with Client(deployed.address) as client:
        made = client.run(make_spec("a red house", candidates=2, variations=2, seed=7)).result()
    tell("a run of 2 sketches, 2 variations, 1 enlargement", time.monotonic() - began)
    assert made.state == "succeeded"
    assert [one.stage for one in made.pictures] == ["generate"] * 2 + ["refine"] * 2 + ["upscale"]


def test_the_page_is_published_beside_it(deployed: Deployed):
    with urllib.request.urlopen(f"http://{deployed.page}/runs", timeout=10) as answer:
        assert json.load(answer)["runs"]


@pytest.mark.parametrize(
    ("service", "memory"), [("generator", 2.0), ("refiner", 2.0), ("upscaler", 1500 / 1024), ("gateway", 1.0)]
)
def test_the_engine_holds_a_container_to_its_bounds(deployed: Deployed, service: str, memory: float):
    (container,) = deployed.of(service)
    bounds = container.said["HostConfig"]
    assert bounds["Memory"] == memory * GB
    assert bounds["ReadonlyRootfs"]
    assert bounds["CapDrop"] == ["ALL"]
    assert container.said["Config"]["User"] == "10001"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lets_in_nobody_without_a_certificate(deployed: Deployed, stage: str):
    (container,) = deployed.of(stage)
    with grpc.insecure_channel(container.address, [("grpc.enable_http_proxy", 0)]) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        with pytest.raises(grpc.RpcError) as refused:
            check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_added_replicas_are_seen_by_the_gateway_under_load(deployed: Deployed):
    seen_at: list[float] = []

    def watch() -> None:
        until(lambda: deployed.num_healthy("refiner") == 3, PATIENCE_S)
        seen_at.append(time.time())

    with load(deployed) as done:
        watching = threading.Thread(target=watch)
        watching.start()
        began = time.time()
        triptych("scale", "refiner", "3")
        healthy_at = time.time()
        watching.join()
        # Also those that were under way when the replicas came.
        until(lambda: len(done) >= 2, PATIENCE_S)
    serving_at = max(announced_at(deployed, one) for one in deployed.of("refiner"))
    tell("from `scale refiner 3` until the last of them serves", serving_at - began)
    tell("from `scale refiner 3` until the engine calls all healthy", healthy_at - began)
    tell("from the moment that the last one serves until the gateway knows", seen_at[0] - serving_at)
    assert seen_at[0] - serving_at < SEEN_WITHIN_S
    assert set(done) == {9}


def test_a_worker_that_is_killed_in_mid_run_costs_no_picture(deployed: Deployed):
    triptych("scale", "refiner", "3")
    spec = make_spec("a red house by the sea", candidates=2, variations=8, seed=11)
    # The engine needs a second to kill, and the pictures shall not be done by then.
    spec.refine.settings.num_steps = MANY_STEPS
    containers = {one.address: one for one in deployed.of("refiner")}
    with Client(deployed.address) as client:
        undisturbed = client.run(spec).result()
        workers, killed, attempts = {}, "", []
        disturbed = client.run(spec, request_id=str(uuid.uuid4()))
        for event in disturbed:
            if event.HasField("stage_started") and event.stage_started.stage == STAGE_REFINE:
                attempts.append(event.stage_started.attempt)
                workers.update(dict.fromkeys(event.stage_started.indexes, event.stage_started.worker))
            if event.HasField("progress") and event.progress.stage == STAGE_REFINE and not killed:
                killed = workers[event.progress.index]
                deployed.engine.docker("kill", containers[killed].id)
        result = disturbed.so_far
    assert max(attempts) > 1
    assert result.state == "succeeded"
    pairs = list(zip(undisturbed.pictures, result.pictures, strict=True))
    assert all((a.stage, a.index, a.seed) == (b.stage, b.index, b.seed) for a, b in pairs)
    levels = [np.abs(pixels(a) - pixels(b)) for a, b in pairs]
    largest, share = max(one.max() for one in levels), max((one > 0).mean() for one in levels)
    same = sum(a.sha256 == b.sha256 for a, b in pairs)
    tell(
        "pictures of the run with a worker killed",
        f"attempts {attempts}; {same} of {len(pairs)} to the byte, the others differ by {largest} of 256 levels "
        f"in {share:.2%} of their values at most",
    )
    assert largest <= FEW_LEVELS
    assert share < FEW_PIXELS


def test_replicas_that_are_too_many_go_without_a_loss(deployed: Deployed):
    with load(deployed) as done:
        triptych("scale", "refiner", "1")
        until(lambda: len(deployed.of("refiner")) == 1, PATIENCE_S)
        until(lambda: len(done) >= 1, PATIENCE_S)
    assert set(done) == {9}
    assert deployed.num_healthy("refiner") == 1


def start_watcher(deployed: Deployed, service: str, port: int) -> str:
    """Where a service of the profile `monitoring` is published. Skips where its image cannot be had."""
    (compose_file,) = read_documents(ROOT / "docker-compose.yml")
    image = compose_file["services"][service]["image"]
    there = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    if (
        there.returncode
        and (done := subprocess.run(["docker", "pull", "-q", image], capture_output=True)).returncode
    ):
        pytest.skip(f"{image} cannot be had here: {done.stderr.decode().strip().splitlines()[-1]}")
    ports = {"PROMETHEUS_PORT": "0", "GRAFANA_PORT": "0"}
    deployed.engine.compose(
        *("--profile", "monitoring", "up", "-d", "--no-recreate", service), environment=ports
    )
    (container,) = deployed.of(service)
    return container.published(port)


def test_prometheus_finds_and_asks_every_process(deployed: Deployed):
    address = start_watcher(deployed, "prometheus", 9090)
    processes = {one.address.partition(":")[0] for name in (*STAGES, "gateway") for one in deployed.of(name)}

    def asked() -> set[str]:
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/targets", timeout=5) as answer:
                targets = json.load(answer)["data"]["activeTargets"]
        except OSError:
            return set()
        return {one["labels"]["instance"].partition(":")[0] for one in targets if one["health"] == "up"}

    tell("Prometheus has asked every process", until(lambda: asked() == processes, 120.0))


def test_grafana_shows_the_dashboard_to_anybody(deployed: Deployed):
    address = start_watcher(deployed, "grafana", 3000)

    def shown() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/api/search?type=dash-db", timeout=5) as answer:
                return bool(json.load(answer))
        except OSError:
            return False

    tell("Grafana shows the dashboard", until(shown, 120.0))


def test_status_and_logs_name_the_containers(deployed: Deployed):
    said = [json.loads(line) for line in triptych("status", "--json").splitlines()]
    workers = [one for one in said if "id" in one]
    assert sorted(worker["stage"] for worker in workers) == sorted(STAGES)
    assert {worker["state"] for worker in workers} == {"serving"}
    assert "serving" in triptych("logs", workers[0]["id"])
