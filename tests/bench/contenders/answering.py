"""The contender's end of a benchmark: a process that times what it is asked to do, one line of JSON at a time.

Only the standard library: contenders run in environments of their own.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

THREADS_VARIABLE = "TRIPTYCH_BENCH_THREADS"
PEAK_RESET = Path("/proc/self/clear_refs")


def num_threads() -> int:
    return int(os.environ[THREADS_VARIABLE])


def answer(actions: Mapping[str, Callable[..., Any]], packages: list[str]) -> None:
    """Does what each line of standard input asks for and answers with what it gave and what it took."""
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"versions": {name: version(name) for name in packages}}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        action = actions[asked["action"]]
        with PeakMemory() as memory:
            wall, cpu = time.perf_counter(), time.process_time()
            result = action(**asked["arguments"])
            took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps({"result": result, **took, "peak_mb": memory.peak_mb}), file=answers)


class PeakMemory:
    """The most memory that the process held at once inside the block; since its start where that cannot be reset."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def __enter__(self) -> "PeakMemory":
        if PEAK_RESET.exists():
            PEAK_RESET.write_text("5")
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        status = Path("/proc/self/status")
        if status.exists():
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            self.peak_mb = int(lines["VmHWM"].split()[0]) / 1024


def in_threads(run: Callable[[int], Any]) -> None:
    """Runs `run(i)` in as many threads as the benchmark has, and waits for all."""
    threads = [threading.Thread(target=run, args=(i,)) for i in range(num_threads())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
