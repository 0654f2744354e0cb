"""Downloads what a machine with CUDA, torch and JAX lacks to run this project: `make gpu-wheels`.

For a machine without network: wheels for Linux on x86-64 and Python 3.12, of the versions that constraints.txt pins. There:
`pip install --no-index --no-deps build/gpu-wheels/*.whl`, then `python -m tests.gpu` in the repository.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from tests.bench.contending import ROOT

TO = ROOT / "build" / "gpu-wheels"
OURS = {"triptych": ".", "triptych-server": "packages/server"}
ROOTS = ("triptych", "triptych-server[generator,unclip,refiner,upscaler,gateway]")
# The machine has them; diffusers and spandrel are what the bench compares with.
THERE = {
    "torch",
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "opt-einsum",
    "ml-dtypes",
    "triton",
    "triptych",
    "triptych-server",
}
PEERS = (
    "diffusers==0.42.1",
    "spandrel==0.4.2",
    "regex",
    "importlib_metadata",
    "zipp",
    "packaging",
    "pyyaml",
    "requests",
)
TARGET = (
    "--python-version",
    "3.12",
    "--implementation",
    "cp",
    "--abi",
    "cp312",
    "--abi",
    "abi3",
    "--abi",
    "none",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    versions = {canonical(name): f"{name}=={version}" for name, version in pinned.items()}
    names = sorted(needed())
    wanted = [versions.get(name, name) for name in names]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(TO)]
    subprocess.run([*command, *TARGET, *platforms, *wanted], check=True)
    # Comparisons are left out where these cannot be had.
    subprocess.run([*command, *TARGET, *platforms, *PEERS], check=False)
    size_mb = sum(file.stat().st_size for file in TO.iterdir()) / 2**20
    print(f"{len(list(TO.iterdir()))} wheels of {size_mb:.0f} MB in {TO}")


def needed() -> set[str]:
    """All that the roots need on the machine, but for what is there; by what is installed here."""
    found: set[str] = set()
    waiting = [Requirement(root) for root in ROOTS]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        for text in requirements_of(name, requirement.extras):
            below = Requirement(text)
            environments = [{"extra": extra, "python_version": "3.12"} for extra in ("", *requirement.extras)]
            if below.marker is not None and not any(map(below.marker.evaluate, environments)):
                continue
            if canonical(below.name) not in found | THERE or below.extras:
                waiting.append(below)
        if name not in THERE:
            found.add(name)
    return found


def requirements_of(name: str, extras: set[str]) -> list[str]:
    """Of our own packages as pyproject.toml has them, which may be newer than what is installed."""
    if name in OURS:
        project = tomllib.loads((ROOT / OURS[name] / "pyproject.toml").read_text())["project"]
        optional = project.get("optional-dependencies", {})
        return [*project["dependencies"], *(text for extra in extras for text in optional[extra])]
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
