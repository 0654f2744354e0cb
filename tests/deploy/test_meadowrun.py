"""Meadowrun itself, in its own environment, on a cloud that moto plays and machines that are an sshd of this one.

Only prices, this machine's address and where ssh goes are made up (patched_bridge.py).
"""

from pathlib import Path

import pytest

from deploy.deployment import Deployment
from tests.deploy.cloud import Cloud

pytestmark = [pytest.mark.meadowrun, pytest.mark.timeout(600)]


def test_a_worker_gets_the_cheapest_spot_machine_that_has_the_gpu(cloud: Cloud, tmp_path: Path):
    deployer = cloud.deployer("cheapest")
    try:
        Deployment(deployer, tmp_path / "workers.json").scale({"upscaler": 1})
        (machine,) = cloud.instances("cheapest")
    finally:
        deployer.teardown()
    assert (machine["InstanceType"], machine["InstanceLifecycle"]) == ("g4dn.xlarge", "spot")
