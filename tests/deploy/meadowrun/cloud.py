"""EC2 as moto plays it, with Meadowrun installed, and an sshd of this machine as all of its machines.

A machine's /var is a folder of the tests, in a mount namespace; its workers listen at the loopback address that it was
reached at. Skips where there is no sshd, or where mounts are not permitted.
"""

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from moto.server import ThreadedMotoServer

from deploy.meadowrun.bridge_client import Bridge
from deploy.meadowrun.deployer import MeadowrunDeployer
from deploy.meadowrun.jobs import Settings
from deploy.meadowrun.virtualenv import ensure_environment
from tests.deploy import stage_command
from tests.deploy.ssh.sshd import Sshd, running_sshd

REGION = "us-east-2"
ROOT = Path(__file__).parents[3]
# The tests' own, made once for all runs of them.
ENVIRONMENT = ROOT / "build" / "meadowrun"
PATCHED_BRIDGE = Path(__file__).with_name("patched_bridge.py")
MOUNT = 'mount --bind "$0" /var && exec "$@"'


def kind(
    name: str, price: float, *, memory: float, gpu_memory: float = 0, eviction: float | None = None
) -> dict[str, Any]:
    """A type of machine as Meadowrun keeps them; `eviction`, in percent, is a spot machine's."""
    gpu = {"gpu": 1.0, "gpu_memory": gpu_memory} if gpu_memory else {}
    return {
        "name": name,
        "on_demand_or_spot": "on_demand" if eviction is None else "spot",
        "price": price,
        "resources": {
            "consumable": {"logical_cpu": 4.0, "memory_gb": memory, **gpu},
            "non_consumable": {
                "eviction_rate_inverse": 100.0 - (eviction or 0.0),
                "intel": 1.0,
                **({"nvidia": 1.0} if gpu else {}),
            },
        },
    }


PRICES = [
    kind("m5.xlarge", 0.192, memory=16),
    kind("m5.xlarge", 0.0575, memory=16, eviction=7.5),
    kind("g4dn.xlarge", 0.526, memory=16, gpu_memory=16),
    kind("g4dn.xlarge", 0.1578, memory=16, gpu_memory=16, eviction=7.5),
    kind("g5.xlarge", 1.006, memory=16, gpu_memory=24),
    kind("g5.xlarge", 0.302, memory=16, gpu_memory=24, eviction=90),
]


@dataclass
class Cloud:
    """An account with Meadowrun in it. `ami` is an image that Triptych is installed in."""

    folder: Path
    endpoint: str
    sshd: Sshd
    python: Path
    ami: str = ""
    said: list[str] = field(default_factory=list)
    bridges: list[Bridge] = field(default_factory=list)

    @property
    def access(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "nothing worth keeping",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def interpreter(self) -> Path:
        """The Python of an image that has Triptych; a machine's only address is the one that it was reached at."""
        return self.folder / "triptych" / "bin" / "python"

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id="somebody",
            aws_secret_access_key="nothing worth keeping",
        )

    def bridge(self) -> Bridge:
        """One with a process of its own."""
        patches = {
            "folder": str(ROOT / "deploy" / "meadowrun" / "bridge"),
            "port": self.sshd.port,
            "prices": PRICES,
        }
        settings = {
            **self.access,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PATCHED_BRIDGE": json.dumps(patches),
        }
        command = ["env", *(f"{name}={value}" for name, value in settings.items())]
        command += [str(self.python), str(PATCHED_BRIDGE)]
        self.bridges.append(Bridge(lambda: command, self.folder / "bridge.log", self.said.append))
        return self.bridges[-1]

    def deployer(self, name: str, **settings: Any) -> MeadowrunDeployer:
        defaults = {"interpreter": str(self.interpreter), "ami": self.ami, "insecure": True}
        return MeadowrunDeployer(name, Settings(REGION, **{**defaults, **settings}), self.bridge())

    def instances(self, name: str) -> list[dict[str, Any]]:
        """What carries the tag of a deployment and has not ended."""
        found = self.client("ec2").describe_instances(
            Filters=[
                {"Name": "tag:triptych:deployment", "Values": [name]},
                {"Name": "instance-state-name", "Values": ["pending", "running"]},
            ]
        )
        return [one for reservation in found["Reservations"] for one in reservation["Instances"]]


@contextmanager
def running_cloud(folder: Path) -> Iterator[Cloud]:
    """An account, for the time of the block."""
    mount = ["unshare", "--mount", "sh", "-c", MOUNT]
    var = folder / "var"
    meadowrun = var / "meadowrun"
    for name in ("io", "job_logs", "env/bin", "git_repos", "local_copies", "misc", "machine_cache"):
        (meadowrun / name).mkdir(parents=True)
    (var / "tmp").mkdir()
    (var / "run").symlink_to("/run")
    if subprocess.run([*mount, str(var), "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not permitted here")
    python = ensure_environment(print, ENVIRONMENT)
    script(meadowrun / "env" / "bin" / "python", f'exec {shlex.quote(str(python))} "$@"')
    # 0.0.0.0 would be all machines' addresses.
    address = "address=$(echo $SSH_CONNECTION | cut -d ' ' -f 3)"
    listen = 'for one; do shift; [ "$one" = 0.0.0.0 ] && one=$address; set -- "$@" "$one"; done'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        # A line for every request.
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        cloud = Cloud(folder, f"http://{host}:{port}", Sshd(folder, 0), python)
        # Stages are real servers around networks that only count.
        stage = f'[ "$3" = serve ] && shift 2 && set -- -m {stage_command.__name__} "$@"'
        python_path = f"PYTHONPATH={shlex.quote(str(ROOT))}"
        script(
            cloud.interpreter,
            stage,
            address,
            listen,
            f'{python_path} exec {shlex.quote(sys.executable)} "$@"',
        )
        environment = {**cloud.access, "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", "PATH": os.environ["PATH"]}
        try:
            with running_sshd(
                folder / "sshd", environment, host="0.0.0.0", within=[*mount, str(var)]
            ) as sshd:
                cloud.sshd = sshd
                install(cloud)
                yield cloud
                with ThreadPoolExecutor(8) as threads:
                    for bridge in cloud.bridges:
                        threads.submit(bridge.close, timeout_s=60)
        finally:
            server.stop()


def install(cloud: Cloud) -> None:
    """Meadowrun in the account, an image in it, and its key on the machine."""
    bridge = cloud.bridge()
    bridge.ask("install", region=REGION, allow_authorize_ips=True)
    secret = cloud.client("secretsmanager").get_secret_value(SecretId="meadowrun_private_key")
    key = load_pem_private_key(secret["SecretString"].encode(), None)
    cloud.sshd.authorize(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())
    cloud.ami = cloud.client("ec2").register_image(Name="triptych")["ImageId"]


def script(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
