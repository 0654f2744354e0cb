"""docker-compose.yml: valid, as safe as it claims, and watched by a dashboard that asks for numbers that there are."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client import generate_latest

from gateway.metrics import GatewayMetrics
from gateway.stages import STAGES
from services.engine.engine import Engine
from services.engine.events import EncodedPicture, Finished, Timing
from services.serving.metrics import StageMetrics
from services.serving.stage_service import StageService
from tests.deploy.kustomized import read_documents
from tests.gateway.fake_stage import pipeline
from tests.services.engine.test_engine import Scripted
from triptych.v1.stage_pb2 import ModelInfo

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
MONITORING = ROOT / "deploy" / "monitoring"
KUBERNETES = ROOT / "deploy" / "kubernetes"
WORKERS = tuple(kind.worker_name for kind in STAGES)
PROCESSES = (*WORKERS, "gateway")
(COMPOSED,) = read_documents(ROOT / FILES[0])
SERVICES = COMPOSED["services"]


@pytest.mark.parametrize("file", FILES)
def test_it_is_valid(file):
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / file)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_few_rights_and_a_bound_on_memory(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_published_is_published_on_loopback(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_every_volume_is_declared_or_a_file_that_is_there(name):
    for volume in SERVICES[name].get("volumes", ()):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSED["volumes"]


def test_only_the_profile_starts_monitoring():
    watched = {name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]}
    assert watched == {"prometheus", "grafana"}


def test_prometheus_asks_every_process_on_its_port_for_metrics():
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    assert names["names"] == list(PROCESSES)
    ports = {int(SERVICES[name]["environment"]["TRIPTYCH_METRICS_PORT"]) for name in PROCESSES}
    assert ports == {names["port"]}


def test_the_dashboard_asks_the_source_that_is_provided():
    (source,) = yaml.safe_load((MONITORING / "grafana/datasources/prometheus.yml").read_text())["datasources"]
    asked = {target["datasource"]["uid"] for target in targets()}
    assert asked == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


async def test_every_number_that_is_asked_for_is_reported_by_a_process():
    async with pipeline() as gateway:
        said = generate_latest(GatewayMetrics(gateway.pools, gateway.runs).registry)
    told = set(re.findall(r"^(triptych_\w+)", (said + stage_says()).decode(), re.MULTILINE))
    asked = {
        name
        for query in [*dashboard_queries(), *scaling_queries()]
        for name in re.findall(r"triptych_\w+", query)
    }
    assert asked <= told


async def test_pictures_that_wait_count_at_the_gateway_and_at_the_stage():
    """The dashboard and autoscaling add up all that have this name and this label."""
    async with pipeline() as gateway:
        said = generate_latest(GatewayMetrics(gateway.pools, gateway.runs).registry)
    for process in (said, stage_says()):
        assert b'triptych_waiting_images{stage="refiner"}' in process


def test_the_dashboard_and_autoscaling_name_stages_as_they_name_themselves():
    queries = [*dashboard_queries(), *scaling_queries()]
    named = {name for query in queries for name in re.findall(r'stage="(\w+)"', query)}
    assert named == set(WORKERS)


def stage_says() -> bytes:
    """The metrics of a stage that has made one picture."""
    metrics = StageMetrics("refiner")
    metrics.observe(Finished(0, EncodedPicture(b"png", 8, 8), Timing(0, 0, 0, 0)))
    loaded = SimpleNamespace(stepper=Scripted(num_slots=2), info=ModelInfo())
    StageService().set_ready(loaded, Engine(loaded.stepper, max_queue=1), metrics)
    return generate_latest(metrics.registry)


def targets():
    dashboard = json.loads((MONITORING / "grafana/dashboards/triptych.json").read_text())
    return [target for panel in dashboard["panels"] for target in panel["targets"]]


def dashboard_queries():
    return [target["expr"] for target in targets()]


def scaling_queries():
    scaled = [one for path in (KUBERNETES / "autoscaling").glob("*.yaml") for one in read_documents(path)]
    return [
        trigger["metadata"]["query"]
        for one in scaled
        if one["kind"] == "ScaledObject"
        for trigger in one["spec"]["triggers"]
    ]
