"""The benchmark's end: contenders in processes of their own, asked in turns, and the table of what they took.

The machine's speed drifts, so contenders alternate and a ratio is taken within each round. Beside the wall clock
stands processor time, which other programs on the machine disturb less.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from tests.bench.contenders.answering import THREADS_VARIABLE
from tests.parity.__main__ import install, python_of

ROOT = Path(__file__).parents[2]
# Random weights and compiled programs; gigabytes, made once.
CACHE = ROOT / "build" / "bench"


@dataclass(frozen=True)
class Took:
    """What one action gave and took."""

    result: Any
    wall_s: float
    cpu_s: float
    peak_mb: float


class Contender(AbstractContextManager["Contender"]):
    """A script of tests/bench/contenders in its environment; None is the project's own."""

    def __init__(
        self, name: str, script: str, *arguments: str, threads: int, environment: str | None = None
    ) -> None:
        self.name = name
        python = sys.executable
        if environment is not None:
            install(environment)
            python = str(python_of(environment))
        settings = {
            THREADS_VARIABLE: str(threads),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # as the services run; the one who waits must not disturb the other
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TRIPTYCH_JAX_CACHE": str(CACHE / "jax"),
        }
        path = ROOT / "tests" / "bench" / "contenders" / f"{script}.py"
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def do(self, action: str, **arguments: Any) -> Took:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return Took(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended ({self._process.wait()}); its errors are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Series:
    """What an action took, round by round."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, took: Took, share: float = 1.0) -> Took:
        self.wall_s.append(took.wall_s * share)
        self.cpu_s.append(took.cpu_s * share)
        return took


@dataclass(frozen=True)
class Spread:
    """A figure with its least and largest value among the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1])

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times as long the first took, within each round."""
    return Spread.of(a / b for a, b in zip(slow, fast, strict=True))


def print_conditions(contenders: Sequence[Contender], threads: int, *packages: str) -> None:
    """The first lines of every table: what ran, where, and how; `packages` are those of this process that matter."""
    versions = {package: version(package) for package in packages}
    for contender in contenders:
        versions |= contender.versions
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    print(
        f"\ncommit {commit.stdout.strip() or 'unknown'}; {threads} threads of {os.cpu_count()}; {_processor()}"
    )
    print(
        f"python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))
    )
    print(f"load of the machine {os.getloadavg()[0]:.1f}; figures: median (least-largest) of the rounds\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    sys.stdout.flush()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    names = [line for line in information.read_text().splitlines() if line.startswith("model name")] if information.exists() else []  # fmt: skip
    return names[0].partition(":")[2].strip() if names else platform.processor()
