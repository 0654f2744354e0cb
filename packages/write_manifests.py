"""Writes what docker-compose, Kubernetes and the monitoring have for each stage, from the tables of stages and resources.

`make manifests` runs it after a change of a table or of `deploy/kubernetes/templates`; `make check` compares. Everything
else in these files is edited by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template

from triptych.stages import STAGES, StageInfo

ROOT = Path(__file__).parents[1]
KUBERNETES = Path("deploy/kubernetes")
DASHBOARD = Path("deploy/monitoring/grafana/dashboards/triptych.json")
# Names in lists beside those of the stages.
OTHERS = "gateway|network|namespace|weights"
COMPOSE_SERVICE = Template(
    """\
  $stage:
    <<: *service
    image: triptych-$stage
    build: {context: ., dockerfile: deploy/Dockerfile, target: $stage}
    mem_limit: $${TRIPTYCH_${STAGE}_MEMORY:-$memory}
    depends_on: {<<: *certified}
    environment:
      <<: [*cpu, *stage]
      TRIPTYCH_TLS_CERT: /certificates/$stage.crt
      TRIPTYCH_TLS_KEY: /certificates/$stage.key
$volumes
    healthcheck:
      <<: *health
      test: [CMD, python, -m, triptych, health, "127.0.0.1:50060", $service]

"""
)
COMPOSE_GPU = Template(
    """\
  $stage:
    <<: *gpu
    mem_limit: $${TRIPTYCH_${STAGE}_MEMORY:-$memory}
$build    environment: {TRIPTYCH_DEVICE: cuda, TRIPTYCH_DTYPE: "$${TRIPTYCH_DTYPE:-auto}"}
"""
)


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage gets. Memory of a GPU's machine while a model is loaded: computed, not measured."""

    memory: str
    gpu_memory: str
    # Kubernetes: what is reserved on a CPU, and the limits.
    request: str
    limit: str
    gpu_limit: str
    # The published model that an NVIDIA device serves, and its slots.
    model: str
    slots: int
    # Keeps what JAX has compiled.
    has_compiled: bool = False


RESOURCES = {
    "generator": Resources("2g", "12g", "1Gi", "2Gi", "8Gi", "mini", 8, has_compiled=True),
    "refiner": Resources("2g", "8g", "1Gi", "2Gi", "8Gi", "glid-3-xl", 8),
    "upscaler": Resources("1500m", "6g", "768Mi", "1536Mi", "6Gi", "real-l", 2),
}


def manifests() -> dict[Path, str]:
    """The files, by their path below the root of the project, as they should be."""
    written = dict(_kubernetes_of_stages())
    base, autoscaling = KUBERNETES / "base", KUBERNETES / "autoscaling"
    cpu, gpu = KUBERNETES / "overlays" / "cpu-tiny", KUBERNETES / "overlays" / "gpu"
    names = ", ".join(stage.worker_name for stage in STAGES)
    edits: dict[Path, list[Callable[[str], str]]] = {
        Path("docker-compose.yml"): [
            lambda text: re.sub(r"(?s)  generator:\n.*?(?=  gateway:\n)", lambda _: _compose(), text),
            lambda text: _with_lines(text, "      TRIPTYCH_{STAGE}: dns:{stage}:{port}"),
        ],
        Path("docker-compose.gpu.yml"): [
            lambda text: re.sub(r"(?s)  generator:\n.*", lambda _: _compose_gpu(), text)
        ],
        base / "gateway.yaml": [
            lambda text: _with_lines(
                text, '            - {{name: TRIPTYCH_{STAGE}, value: "dns:{stage}:{port}"}}'
            )
        ],
        base / "kustomization.yaml": [lambda text: _with_lines(text, "  - {stage}.yaml")],
        autoscaling / "kustomization.yaml": [lambda text: _with_lines(text, "  - {stage}.yaml")],
        cpu / "kustomization.yaml": [
            lambda text: _with_lines(text, '  - {{name: triptych-{stage}, newTag: "0.1.0"}}'),
            lambda text: _with_lines(text, "  - path: {stage}.yaml"),
        ],
        gpu / "kustomization.yaml": [
            lambda text: _with_lines(
                text,
                "  - {{name: triptych-{stage}, newName: registry.example.org/triptych-{stage}, newTag: 0.1.0-cuda}}",
            ),
            lambda text: _with_lines(text, "  - path: {stage}.yaml"),
        ],
        DASHBOARD: [_dashboard],
    }
    for path in (
        base / "network.yaml",
        gpu / "weights.yaml",
        KUBERNETES / "components/tracing/network.yaml",
        Path("deploy/monitoring/prometheus.yml"),
    ):
        edits[path] = [lambda text: re.sub(r"\[generator(?:, (?!gateway)\w+)*", f"[{names}", text)]
    for path, changes in edits.items():
        text = (ROOT / path).read_text("utf-8")
        for change in changes:
            text = change(text)
        written[path] = text
    return written


def _kubernetes_of_stages() -> Iterator[tuple[Path, str]]:
    folders = {
        "base": KUBERNETES / "base",
        "autoscaling": KUBERNETES / "autoscaling",
        "gpu": KUBERNETES / "overlays" / "gpu",
        "cpu-tiny": KUBERNETES / "overlays" / "cpu-tiny",
    }
    for name, folder in folders.items():
        template = Template((ROOT / KUBERNETES / "templates" / f"{name}.yaml").read_text("utf-8"))
        for stage in STAGES:
            has = RESOURCES[stage.worker_name]
            mounts = volumes = ""
            if has.has_compiled:
                mounts = "            # What JAX has compiled; with the pod it goes.\n            - {name: compiled, mountPath: /compiled}\n"
                volumes = "        - name: compiled\n          emptyDir: {sizeLimit: 2Gi}\n"
            text = template.substitute(
                _names(stage),
                model=has.model,
                slots=has.slots,
                memory=has.gpu_limit,
                memory_request=has.request,
                memory_limit=has.limit,
                volume_mounts=mounts,
                volumes=volumes,
            )
            yield folder / f"{stage.worker_name}.yaml", text


def _names(stage: StageInfo) -> dict[str, object]:
    name = stage.worker_name
    return {"stage": name, "STAGE": name.upper(), "port": stage.port, "service": stage.service}


def _compose() -> str:
    compiled = '    # What JAX has compiled for this machine: a second start takes seconds.\n    volumes: ["compiled:/compiled", "certificates:/certificates:ro"]'
    return "".join(
        COMPOSE_SERVICE.substitute(
            _names(stage),
            memory=RESOURCES[stage.worker_name].memory,
            volumes=compiled
            if RESOURCES[stage.worker_name].has_compiled
            else '    volumes: ["certificates:/certificates:ro"]',
        )
        for stage in STAGES
    )


def _compose_gpu() -> str:
    build = '    build:\n      args: {GENERATOR_EXTRAS: "generator,cuda"}\n'
    return "".join(
        COMPOSE_GPU.substitute(
            _names(stage),
            memory=RESOURCES[stage.worker_name].gpu_memory,
            build=build if RESOURCES[stage.worker_name].has_compiled else "",
        )
        for stage in STAGES
    )


def _with_lines(text: str, line: str) -> str:
    """Replaces the lines of the stages, which follow each other, by one for each stage of the table."""
    blank = re.escape(line.format(stage="stage", STAGE="STAGE", port="port"))
    pattern = (
        blank.replace("stage", rf"(?!{OTHERS})[a-z]+")
        .replace("STAGE", "(?!GATEWAY)[A-Z]+")
        .replace("port", r"\d+")
    )
    lines = "".join(line.format(**_names(stage)) + "\n" for stage in STAGES)
    changed, num_changed = re.subn(rf"(?m)(?:^{pattern}\n)+", lambda _: lines, text)
    if num_changed != 1:
        raise ValueError(f"expected the lines of the stages once, got them {num_changed} times: {line}")
    return changed


def _dashboard(text: str) -> str:
    """A variable for each stage's price, and the sum of them."""
    dashboard = json.loads(text)
    variables = dashboard["templating"]["list"]
    prices = [one for one in variables if one["name"].startswith("price_")]
    first = variables.index(prices[0])
    variables[first : first + len(prices)] = [
        prices[0] | {"name": f"price_{stage.worker_name}", "label": f"Price of a {stage.worker_name} an hour"}
        for stage in STAGES
    ]
    term = 'scalar(max(triptych_healthy_workers{{stage="{0}"}}))'
    total = " + ".join(f"$price_{stage.worker_name} * {term.format(stage.worker_name)}" for stage in STAGES)
    one = r'\$price_\w+ \* scalar\(max\(triptych_healthy_workers\{stage="\w+"\}\)\)'
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            target["expr"] = re.sub(rf"{one}(?: \+ {one})*", lambda _: total, target["expr"])
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only list the files that differ")
    is_check = parser.parse_args().check
    for path, text in manifests().items():
        current = ROOT / path
        if current.exists() and current.read_text("utf-8") == text:
            continue
        print(path)
        if is_check:
            sys.exit("differs from the tables: run `make manifests`")
        current.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
