"""How many threads JAX takes, and that a service with few of them is not tied to the first processors."""

import json
import os
import subprocess
import sys

import pytest

# A process of its own: the device is set up once in each.
SCRIPT = """
import json, os
from services.generator.dalle.device import num_processors, set_up_device

set_up_device("cpu", threads=1)
allowed = {task: sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")}
pools = [open(f"/proc/self/task/{task}/comm").read() for task in allowed]
print(json.dumps([num_processors(), list(allowed.values()), sum("XLAEigen" in name for name in pools)]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors to tell them apart")
def test_a_generator_of_one_thread_may_run_on_every_processor():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    num_threads, allowed, num_pooled = json.loads(done.stdout)

    assert num_threads == 1
    assert num_pooled <= 1
    assert all(processors == sorted(os.sched_getaffinity(0)) for processors in allowed)


@pytest.mark.parametrize(("setting", "expected"), [(None, "false"), ("true", "true")])
def test_a_generator_takes_of_a_gpu_only_what_it_needs_unless_set_otherwise(setting, expected):
    """JAX reads the variable when it opens the device: it has to be there by then."""
    script = (
        "import os; from services.generator.dalle.device import set_up_device; set_up_device('cpu')\n"
        "print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XLA_PYTHON")}
    if setting is not None:
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = setting
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == expected
