"""The manifests: valid for current versions of Kubernetes, whole, and as safe as they say. No cluster is needed."""

import json
import os
import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml

from gateway.access.certs_command import files_of
from gateway.command import serve as serve_gateway
from gateway.stages import STAGES
from services.generator.service import serve as serve_generator
from services.refiner.service import serve as serve_refiner
from services.upscaler.service import serve as serve_upscaler
from services.weights.catalog import KNOWN
from tests.deploy.kustomized import build, containers_of, key_of, parse_documents, read_documents
from triptych import __version__

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("cpu-tiny", "gpu")
VERSIONS = ("1.36", "1.37")
WORKERS = tuple(kind.worker_name for kind in STAGES)
COMMANDS = {
    "generator": serve_generator,
    "refiner": serve_refiner,
    "upscaler": serve_upscaler,
    "gateway": serve_gateway,
}
# Read elsewhere than in a command's options.
OTHER_VARIABLES = {"TRIPTYCH_MACHINE_CACHE", "OMP_NUM_THREADS"}

BUILT = {overlay: {key_of(one): one for one in build(ROOT / "overlays" / overlay)} for overlay in OVERLAYS}
SCALED = build(ROOT / "autoscaling")
PROCESSES = [(overlay, name) for overlay in OVERLAYS for name in COMMANDS]


def pod_of(overlay, name):
    return BUILT[overlay]["Deployment", name]["spec"]["template"]["spec"]


def container_of(overlay, name):
    (container,) = pod_of(overlay, name)["containers"]
    return container


def variables_of(container):
    return {variable["name"]: variable["value"] for variable in container.get("env", ())}


@pytest.mark.parametrize(
    ("overlay", "key", "version"),
    [(overlay, key, version) for overlay in OVERLAYS for key in BUILT[overlay] for version in VERSIONS],
)
def test_every_document_is_valid(overlay, key, version):
    kubernetes_validate.validate(BUILT[overlay][key], version, strict=True)


@pytest.mark.parametrize("folder", ["base", "autoscaling", *(f"overlays/{overlay}" for overlay in OVERLAYS)])
def test_kustomize_builds_what_these_tests_look_at(folder):
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl here, which has kustomize built in")
    done = subprocess.run(
        ["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = {key_of(one): one for one in parse_documents(done.stdout)}
    assert built == {key_of(one): one for one in build(ROOT / folder)}


def test_a_field_that_kubernetes_does_not_know_would_be_found():
    wrong = json.loads(json.dumps(BUILT["gpu"]["Deployment", "refiner"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_file_is_in_a_kustomization():
    named = {
        folder / name
        for folder in (path.parent for path in ROOT.rglob("kustomization.yaml"))
        for asked in read_documents(folder / "kustomization.yaml")
        for name in [*asked.get("resources", ()), *(patch["path"] for patch in asked.get("patches", ()))]
    }
    files = {path for path in ROOT.rglob("*.yaml") if path.name != "kustomization.yaml"}
    files -= set((ROOT / "templates").iterdir())  # what the others are written from
    assert files == {path for path in named if path.suffix == ".yaml"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_patch_adds_to_a_container_that_is_there(overlay):
    base = {key_of(one): one for one in build(ROOT / "base")}
    folder = ROOT / "overlays" / overlay
    [asked] = read_documents(folder / "kustomization.yaml")
    for patch in asked["patches"]:
        for part in read_documents(folder / patch["path"]):
            names = {one["name"] for one in base[key_of(part)]["spec"]["template"]["spec"]["containers"]}
            assert {one["name"] for one in part["spec"]["template"]["spec"]["containers"]} <= names


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_every_variable_is_an_option_of_its_process(overlay, name):
    options = {
        param.envvar or f"TRIPTYCH_{param.name.upper()}"
        for param in COMMANDS[name].params
        if isinstance(param, click.Option)
    }
    assert set(variables_of(container_of(overlay, name))) <= options | OTHER_VARIABLES


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_a_process_may_drain_for_longer_than_its_grace(overlay, name):
    container = container_of(overlay, name)
    before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace_s = float(variables_of(container)["TRIPTYCH_GRACE"])
    assert pod_of(overlay, name)["terminationGracePeriodSeconds"] > grace_s + before_s


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_a_process_that_drains_is_not_taken_for_hung(overlay, name):
    container = container_of(overlay, name)
    probe = container["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > float(
        variables_of(container)["TRIPTYCH_GRACE"]
    )


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_probes_ask_the_service_by_its_name_on_the_port_for_health(overlay, name):
    services = {kind.worker_name: kind.service for kind in STAGES} | {
        "gateway": "triptych.v1.PipelineService"
    }
    container = container_of(overlay, name)
    port = int(variables_of(container)["TRIPTYCH_HEALTH_PORT"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": port, "service": services[name]}


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_every_container_has_few_rights(overlay, name):
    pod = pod_of(overlay, name)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    for container in containers_of(BUILT[overlay]["Deployment", name]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_every_container_states_what_it_needs(overlay, name):
    for container in containers_of(BUILT[overlay]["Deployment", name]):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_every_volume_that_is_mounted_is_there(overlay, name):
    volumes = {volume["name"]: volume for volume in pod_of(overlay, name)["volumes"]}
    mounted = {
        mount["name"]
        for container in containers_of(BUILT[overlay]["Deployment", name])
        for mount in container["volumeMounts"]
    }
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes.values()
        if "persistentVolumeClaim" in volume
    }
    assert mounted == set(volumes)
    assert all(("PersistentVolumeClaim", claim) in BUILT[overlay] for claim in claims)


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_certificates_are_those_that_the_command_makes(overlay, name):
    paths = {
        value for value in variables_of(container_of(overlay, name)).values() if "/certificates/" in value
    }
    made = {
        os.fspath(path)
        for one in (name, "gateway-client" if name == "gateway" else name)
        for path in files_of(Path("/certificates"), one)
    }
    assert paths == made | {"/certificates/ca.crt"}


@pytest.mark.parametrize(("overlay", "kind"), list(product(OVERLAYS, STAGES)))
def test_the_gateway_asks_for_every_replica_by_the_name_of_a_headless_service(overlay, kind):
    service = BUILT[overlay]["Service", kind.worker_name]["spec"]
    variables = variables_of(container_of(overlay, "gateway"))
    (port,) = service["ports"]
    ports = {one["name"]: one["containerPort"] for one in container_of(overlay, kind.worker_name)["ports"]}
    assert service["clusterIP"] == "None"
    assert variables[f"TRIPTYCH_{kind.worker_name.upper()}"] == f"dns:{kind.worker_name}:{port['port']}"
    # A headless service translates no port.
    assert ports[port["targetPort"]] == port["port"]


@pytest.mark.parametrize(("overlay", "name"), PROCESSES)
def test_selectors_find_the_pods_of_their_process(overlay, name):
    labels = BUILT[overlay]["Deployment", name]["spec"]["template"]["metadata"]["labels"]
    budget = BUILT[overlay]["PodDisruptionBudget", name]["spec"]
    assert BUILT[overlay]["Service", name]["spec"]["selector"] == labels
    assert budget["selector"]["matchLabels"] == labels
    assert budget["maxUnavailable"] == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_gateway_reaches_the_stages(overlay):
    policies = [one["spec"] for (kind, _), one in BUILT[overlay].items() if kind == "NetworkPolicy"]
    doors = [
        (rule.get("from"), port["port"])
        for policy in policies
        for rule in policy.get("ingress", ())
        for port in rule["ports"]
        if policy["podSelector"].get("matchExpressions")
    ]
    gateway = {"app.kubernetes.io/name": "triptych", "app.kubernetes.io/component": "gateway"}
    assert doors == [([{"podSelector": {"matchLabels": gateway}}], "grpc")]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_prometheus_reads_metrics(overlay):
    doors = [
        rule["from"]
        for (kind, _), one in BUILT[overlay].items()
        if kind == "NetworkPolicy"
        for rule in one["spec"].get("ingress", ())
        for port in rule["ports"]
        if port["port"] == "metrics"
    ]
    ((source,),) = doors
    assert source["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}


@pytest.mark.parametrize("name", WORKERS)
def test_a_gpu_stage_fetches_the_model_that_it_serves(name):
    (fetching,) = pod_of("gpu", name)["initContainers"]
    serving = container_of("gpu", name)
    model = variables_of(serving)["TRIPTYCH_MODEL"]
    assert fetching["command"][3:] == ["weights", "pull", model, "--stage", name]
    assert (name, model) in KNOWN
    assert fetching["image"] == serving["image"]
    cache = variables_of(serving)["TRIPTYCH_MACHINE_CACHE"]
    assert cache == variables_of(fetching)["TRIPTYCH_MACHINE_CACHE"]
    assert cache in {mount["mountPath"] for mount in fetching["volumeMounts"]}
    assert {"name": "weights", "mountPath": cache, "readOnly": True} in serving["volumeMounts"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_gpu_stage_has_a_device_of_its_own(name):
    serving = container_of("gpu", name)
    assert serving["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert variables_of(serving)["TRIPTYCH_DEVICE"] == "cuda"


def test_every_stage_is_scaled_by_its_own_queue():
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in SCALED}
    assert set(scaled) == set(WORKERS)
    for name, spec in scaled.items():
        (trigger,) = spec["triggers"]
        assert set(re.findall(r'stage="(\w+)"', trigger["metadata"]["query"])) == {name}
        assert "triptych_waiting_images" in trigger["metadata"]["query"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_scaled_names_no_number_of_replicas(overlay):
    for name in WORKERS:
        assert "replicas" not in BUILT[overlay]["Deployment", name]["spec"]


@pytest.fixture(scope="module")
def with_components(tmp_path_factory):
    """What kustomize makes of an overlay with every component."""
    if not shutil.which("kubectl"):
        pytest.skip("there is no kubectl here, which has kustomize built in")
    folder = tmp_path_factory.mktemp("overlay")
    components = [
        path.parent for path in ROOT.rglob("kustomization.yaml") if "kind: Component" in path.read_text()
    ]
    asked = {
        "resources": [os.path.relpath(ROOT / "overlays" / "cpu-tiny", folder)],
        "components": [os.path.relpath(component, folder) for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(asked))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {key_of(one): one for one in parse_documents(done.stdout)}


def test_an_overlay_with_every_component_is_valid(with_components):
    for (kind, _), document in with_components.items():
        # Those two are the operator's own.
        if kind not in ("ServiceMonitor", "PrometheusRule"):
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_every_process_exports_its_traces_and_may_reach_the_collector(with_components):
    for name in COMMANDS:
        (container,) = with_components["Deployment", name]["spec"]["template"]["spec"]["containers"]
        endpoint = next(one for one in container["env"] if one["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT")
        assert endpoint["value"].endswith(":4317")
    policy = with_components["NetworkPolicy", "traces"]["spec"]
    assert policy["podSelector"]["matchExpressions"][0]["values"] == [*WORKERS]
    assert {"protocol": "TCP", "port": 4317} in policy["egress"][0]["ports"]


def test_gateways_on_postgresql_share_nothing_but_the_secret_and_the_bucket(with_components):
    spec = with_components["Deployment", "gateway"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {one["name"]: one for one in container["env"]}
    assert (spec["replicas"], spec["strategy"]["type"]) == (2, "RollingUpdate")
    assert variables["TRIPTYCH_JOURNAL"] == {
        "name": "TRIPTYCH_JOURNAL",
        "valueFrom": {"secretKeyRef": {"name": "gateway-journal", "key": "url"}},
    }
    assert variables["TRIPTYCH_STORE"]["value"].startswith("s3://")
    assert "runs" not in {one["name"] for one in spec["template"]["spec"]["volumes"]}
    assert ("PersistentVolumeClaim", "runs") not in with_components


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_have_the_tag_of_this_release(overlay):
    for name in COMMANDS:
        for container in containers_of(BUILT[overlay]["Deployment", name]):
            tag = container["image"].rpartition(":")[2]
            assert tag.removesuffix("-cuda") == __version__
