"""Imports point one way: every package has a rank and imports only packages of a lower rank.

A module that is imported by its name as a text, when it is needed, counts as no import; so the command line stays light.
"""

import ast
import collections
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from services.families import FAMILIES
from triptych.stages import WORKER_NAMES

ROOT = Path(__file__).parent.parent
RANKS = {
    "gateway": {
        "command": 9,
        "server": 8,
        "grpc_service": 7,
        "http": 7,
        "pipeline": 6,
        "metrics": 6,
        "storage_health": 6,
        "runs": 5,
        "webhooks": 5,
        "planning": 4,
        "journal": 4,
        "workers": 3,
        "access": 2,
        "stages": 2,
        "events": 1,
        "store": 1,
        "pagination": 1,
        "spool": 1,
        "web": 0,
    },
    "services": {
        **dict.fromkeys(WORKER_NAMES, 5),
        "serving": 4,
        "engine": 3,
        "pytorch": 4,
        "images": 2,
        "weights": 3,
        "queues": 1,
        "device_memory": 2,
        "families": 1,
        "errors": 0,
        "private_files": 0,
    },
}
# Inside a family of a stage: each may import what stands after it, and conversion stands beside all of them.
STAGE_RANKS = {"service": 4, "stepper": 3, "model": 2, "schedule": 1, "networks": 1, "text": 1}
TOP_MAY_IMPORT = {
    "triptych": set(),
    "services": {"triptych"},
    "gateway": {"triptych", "services"},
}
# All that the gateway may use of the services.
SHARED_WITH_GATEWAY = {"errors", "private_files", "queues", "images", "serving"}
JAX, TORCH = {"jax", "jaxlib", "flax", "optax"}, {"torch", "torchvision"}
FRAMEWORKS = JAX | TORCH
FRAMEWORKS_OF = {"pytorch": TORCH} | {
    family.package: {"jax": JAX, "torch": TORCH}[family.framework] for family in FAMILIES
}
OURS = {"triptych", "services", "gateway", "deploy", "training"}
NOT_IN_NETWORKS = {"asyncio", "grpc", "triptych", "pathlib", "os"}
# A folder that has more is parted by role.
MODULES_OF_A_FOLDER = 10
# Its modules are what users import, beside those that are private by their name.
PUBLIC = "triptych"


def modules(*folders: str) -> list[str]:
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    )


@functools.cache
def imports(module: str) -> list[str]:
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = []
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


# One test for all modules: most of the time of a test of its own would go to starting it.
def test_a_package_imports_only_packages_of_a_lower_rank():
    wrong = {
        module: imports_against_the_ranks(module) for module in modules("triptych", "services", "gateway")
    }
    assert {module: names for module, names in wrong.items() if names} == {}


def imports_against_the_ranks(module: str) -> list[str]:
    top, _, rest = module.partition(".")
    package = rest.partition(".")[0]
    wrong = []
    for name in imports(module):
        other_top, _, other_rest = name.partition(".")
        other = other_rest.partition(".")[0]
        if other_top == top and top in RANKS and package and other not in ("", package):
            wrong += [name] if RANKS[top][other] >= RANKS[top][package] else []
        elif (
            other_top in OURS - {top}
            and other_top not in TOP_MAY_IMPORT[top]
            or top == "gateway"
            and other_top == "services"
            and other not in SHARED_WITH_GATEWAY
        ):
            wrong.append(name)
    return wrong


def test_a_framework_is_imported_only_by_its_own_packages():
    wrong = {}
    for module in modules("triptych", "services", "gateway"):
        allowed = {
            framework
            for package, frameworks in FRAMEWORKS_OF.items()
            if is_in(module, f"services.{package}")
            for framework in frameworks
        }
        wrong[module] = {name.partition(".")[0] for name in imports(module)} & (FRAMEWORKS - allowed)
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize("family", [family.package for family in FAMILIES])
def test_a_network_uses_neither_files_nor_the_contract_and_a_service_stands_above_its_stepper(family):
    for module in modules("services/" + family.replace(".", "/")):
        own = module.removeprefix(f"services.{family}").strip(".").partition(".")[0]
        for name in imports(module):
            if own == "networks":
                assert name.partition(".")[0] not in NOT_IN_NETWORKS, f"{module} imports {name}"
            other = name.removeprefix(f"services.{family}.").partition(".")[0]
            if (
                own in STAGE_RANKS
                and is_in(name, f"services.{family}")
                and other in STAGE_RANKS
                and other != own
            ):
                assert STAGE_RANKS[other] < STAGE_RANKS[own], f"{module} imports {name}"


@pytest.mark.parametrize("top", RANKS)
def test_every_package_has_a_rank(top):
    inside = {
        path.stem
        for path in (ROOT / top).iterdir()
        if (path.suffix == ".py" or path.is_dir()) and path.stem not in ("__init__", "__pycache__")
    }
    assert inside == set(RANKS[top])


def test_a_folder_has_at_most_ten_modules():
    num_modules = collections.Counter(
        str(path.parent.relative_to(ROOT))
        for top in sorted(OURS)
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py"
    )
    del num_modules[PUBLIC], num_modules[f"{PUBLIC}/v1"]
    assert {folder: num for folder, num in num_modules.items() if num > MODULES_OF_A_FOLDER} == {}


@pytest.mark.parametrize("module", ["triptych.client", "triptych.blocking", "triptych.cli.main"])
def test_the_client_and_the_command_line_import_no_service(module):
    script = f"import {module}, sys; print([m for m in sys.modules if m.partition('.')[0] in ('services', 'gateway', 'jax', 'torch', 'numpy')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"
