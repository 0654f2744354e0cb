"""Chooses the faster of several implementations on this CPU by a short measurement, once for each machine.

What was chosen is kept in a file and logged, so that one machine always computes in one way: a seed stays one picture.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from services.private_files import make_private_folder
from services.weights.cache import cache_home
from services.weights.model_folder import write_atomically

log = logging.getLogger(__name__)

# "off" takes the fixed rules in place of measurements.
CHOICES_VARIABLE = "TRIPTYCH_CPU_CHOICES"
FILE_NAME = "cpu-choices.json"
NUM_ROUNDS = 3
Timer = Callable[[Callable[[], object]], float]


def measure_s(call: Callable[[], object]) -> float:
    """Seconds that it takes, at best of NUM_ROUNDS; the first call, which allocates, does not count."""
    call()
    times = []
    for _ in range(NUM_ROUNDS):
        started_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_at)
    return min(times)


class Choices:
    """Answers by name; what was never asked on this machine is measured by `timer`."""

    def __init__(self, path: Path, timer: Timer = measure_s) -> None:
        self._path = path
        self._timer = timer
        self._known = _read(path)

    def choose(self, what: str, candidates: Mapping[str, Callable[[], object]]) -> str:
        """The name of the fastest. `what` has all that the answer depends on but for the machine, such as shape and dtype."""
        key = f"{machine()} | {what}"
        if self._known.get(key) not in candidates:
            times = {name: self._timer(call) for name, call in candidates.items()}
            self._known[key] = min(times, key=lambda name: times[name])
            measured = ", ".join(f"{name} {1e3 * time_s:.3g} ms" for name, time_s in times.items())
            log.info("%s: %s (%s)", what, self._known[key], measured)
            self._keep()
        return self._known[key]

    def _keep(self) -> None:
        try:
            make_private_folder(self._path.parent)
            # Another service of this machine may have written meanwhile.
            text = json.dumps(_read(self._path) | self._known, indent=1, sort_keys=True)
            write_atomically(self._path, text.encode())
        except OSError as error:
            log.warning("choices are measured again at the next start: %s", error)


def service_choices(device: torch.device) -> Choices | None:
    """For a service on a CPU: beside the compiled programs; None on a GPU, and where TRIPTYCH_CPU_CHOICES is "off"."""
    if device.type != "cpu" or os.environ.get(CHOICES_VARIABLE) == "off":
        return None
    return Choices(cache_home() / "triptych" / FILE_NAME)


def machine() -> str:
    """What else an answer depends on: processor, its instructions, threads and torch."""
    return (
        f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    names = {name.strip(): value.strip() for name, value in values.items()}
    # A virtual machine may hide the name, but not the family and model.
    return ", ".join(names.get(name, "?") for name in ("model name", "cpu family", "model"))


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in known.items() if isinstance(value, str)}
        if isinstance(known, dict)
        else {}
    )
