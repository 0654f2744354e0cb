"""Imports point one way: triptych <- services/*.py <- services/<stage>/ and gateway/ <- training/.

A module that is imported by its name alone, when it is needed, counts as no import: so the command line stays light.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {"generator", "refiner", "upscaler"}
JAX, TORCH = {"jax", "jaxlib", "flax", "optax"}, {"torch", "torchvision"}
FRAMEWORKS = JAX | TORCH
FRAMEWORK_OF = {"generator": JAX, "refiner": TORCH, "upscaler": TORCH}


def modules(*folders: str) -> list[str]:
    return sorted(
        path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")
    )


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(module: str) -> set[str]:
    """Packages that a file of ours may not import."""
    top, *rest = module.split("/")
    stages = {f"services.{stage}" for stage in STAGES}
    if top == "triptych":
        return {"services", "gateway", "training"} | FRAMEWORKS
    if top == "gateway":
        return {"training"} | stages | FRAMEWORKS
    if len(rest) > 1:
        stage = rest[0]
        return {"gateway", "training", *stages - {f"services.{stage}"}, *FRAMEWORKS - FRAMEWORK_OF[stage]}
    return {"gateway", "training"} | stages | FRAMEWORKS


@pytest.mark.parametrize("module", modules("triptych", "services", "gateway"))
def test_a_module_imports_only_from_the_layers_below(module):
    wrong = [
        name
        for name in imported(ROOT / module)
        if any(f"{name}.".startswith(f"{package}.") for package in forbidden(module))
    ]
    assert wrong == []


def test_the_rule_knows_every_folder_of_the_services():
    folders = {path.name for path in (ROOT / "services").iterdir() if (path / "__init__.py").is_file()}
    assert folders == STAGES


@pytest.mark.parametrize("module", ["triptych.client", "triptych.blocking", "triptych.cli.main"])
def test_the_client_and_the_command_line_import_no_service(module):
    script = f"import {module}, sys; print([m for m in sys.modules if m.partition('.')[0] in ('services', 'gateway', 'jax', 'torch', 'numpy')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "[]\n"
