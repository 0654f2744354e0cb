"""EC2 operations through Meadowrun and by tags. Runs in Meadowrun's own environment, behind the bridge.

With `aws_account.py`, `launch.py`, `instances.py` and `ssh_connections.py` all that imports Meadowrun and speaks to AWS. Of
Triptych they know tags, and commands that they are given; nothing of it can be imported here.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncssh
import aws_account  # type: ignore[import-not-found]  # beside this file, as those below
import boto3
import botocore.exceptions
import meadowrun
import meadowrun.ssh
from aws_account import Refused, prepare_session
from instances import (  # type: ignore[import-not-found]
    KEPT,
    TAG,
    address_of,
    described,
    release,
    tag,
    tags_of,
)
from launch import FOLDER, TaggedMachine  # type: ignore[import-not-found]
from meadowrun.aws_integration import ec2_pricing
from meadowrun.aws_integration.aws_core import MeadowrunAWSAccessError, MeadowrunNotInstalledError
from meadowrun.meadowrun_pb2 import ProcessState
from meadowrun.run_job_core import MeadowrunException
from ssh_connections import connected, shell  # type: ignore[import-not-found]

__all__ = ["DO", "EXPECTED", "followed", "in_words", "prepare_session"]

# A worker that drains is looked at so often, and its machine given up after so long at the latest.
FOLLOW_EVERY_S = 2.0
FOLLOW_TIMEOUT_S = 300.0
# Workers that drain.
followed: set[asyncio.Task[None]] = set()

Json = dict[str, Any]


# Errors whose message is enough.
EXPECTED = (
    Refused,
    MeadowrunAWSAccessError,
    MeadowrunNotInstalledError,
    MeadowrunException,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    asyncssh.Error,
    OSError,
    ValueError,
)


def in_words(error: Exception) -> str:
    """The message of an expected error, and what to do if it lacks that."""
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return (
            "no AWS credentials were found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return str(error) or type(error).__name__


async def offers(region: str, resources: Json) -> list[Json]:
    """What Meadowrun would choose from, by its own list of prices and evictions."""
    required = meadowrun.Resources(**resources).to_internal()
    return [
        {
            "machine": kind.name,
            "is_spot": kind.on_demand_or_spot == "spot",
            "price": kind.price,
            "eviction_percent": 100.0 - kind.resources.non_consumable[ec2_pricing.EVICTION_RATE_INVERSE],
            "about": kind.resources.format_cpu_memory_gpu(),
        }
        for kind in await ec2_pricing._get_ec2_instance_types(region)
        if kind.resources.divide_by(required) >= 1
    ]


async def launch(
    region: str,
    ami: str,
    tags: Mapping[str, str],
    job: Json,
    resources: Json,
    files: Mapping[str, str],
    wait: bool = False,
) -> Json:
    """Runs one job on a machine of its own, and returns where."""
    machine = TaggedMachine(region, ami, tags, files)
    environment = job["environment"]
    if job.get("image"):
        repository, _, label = job["image"].partition(":")
        deployment = meadowrun.Deployment.container_image(
            repository, label or "latest", environment_variables=environment
        )
    else:
        deployment = meadowrun.Deployment.preinstalled_interpreter(
            job["interpreter"], environment_variables=environment
        )
    await meadowrun.run_command(
        job["command"],
        machine,
        meadowrun.Resources(**resources),
        deployment,
        ports=job["ports"],
        wait_for_result=wait,
    )
    return {"instance": machine.instance, "address": machine.address, "job": machine.job}


async def machines(region: str, deployment: str) -> list[Json]:
    """All machines that carry the tag and may cost something."""
    found = described(
        boto3.client("ec2", region_name=region),
        [
            {"Name": f"tag:{TAG}deployment", "Values": [deployment]},
            KEPT,
        ],
    )
    return [
        {
            "instance": one["InstanceId"],
            "address": address_of(one),
            "kind": one["InstanceType"],
            "is_spot": one.get("InstanceLifecycle") == "spot",
            "tags": {name[len(TAG) :]: value for name, value in tags_of(one).items() if name.startswith(TAG)},
        }
        for one in found
    ]


async def tag_machine(region: str, instance: str, tags: Mapping[str, str]) -> None:
    tag(region, instance, tags)


async def look(region: str, address: str, job: str) -> str:
    """The state of a job: "starting", "running" or "ended"; "unknown" where its machine cannot be asked."""
    script = (
        f"cd {FOLDER}/io; if [ ! -e {job}.pid ]; then echo starting; "
        f'elif [ -e {job}.process_state ] || ! kill -0 "$(cat {job}.pid)" 2>/dev/null; then echo ended; else echo running; fi'
    )
    try:
        said = await shell(region, address, script)
    except (OSError, asyncssh.Error):
        return "unknown"
    return said.strip()


async def drain(region: str, instance: str, address: str, job: str) -> None:
    """Asks a worker to end when it is done; its machine goes when it has, also when nobody waits for it here."""
    tag(region, instance, {"state": "draining"})
    connection = await connected(address, region)
    command = f"kill -INT $(cat {FOLDER}/io/{job}.pid)"
    with contextlib.suppress(asyncssh.SFTPError):
        state = ProcessState()
        state.ParseFromString(
            await meadowrun.ssh.read_from_file(connection, f"{FOLDER}/io/{job}.initial_process_state")
        )
        if state.container_id:
            command = f"docker kill --signal TERM {state.container_id}"
        elif state.pid:
            command = f"kill -TERM {state.pid}"
    await connection.run(command)
    followed.add(asyncio.create_task(follow(region, instance, address, job)))


async def follow(region: str, instance: str, address: str, job: str) -> None:
    for _ in range(int(FOLLOW_TIMEOUT_S / FOLLOW_EVERY_S)):
        if await look(region, address, job) == "ended":
            break
        await asyncio.sleep(FOLLOW_EVERY_S)
    release(region, [instance])


async def log(region: str, address: str, job: str, num_lines: int) -> str:
    """The end of a job's log."""
    return await shell(region, address, f"tail -qn {int(num_lines)} {FOLDER}/job_logs/*.{job}.log")


async def give_back(region: str, instances: Sequence[str]) -> list[str]:
    """Stops machines; returns those that do not stop."""
    release(region, instances)
    left = described(boto3.client("ec2", region_name=region), [KEPT])
    return [one["InstanceId"] for one in left if one["InstanceId"] in instances]


DO: dict[str, Callable[..., Awaitable[Any]]] = {
    "check": aws_account.check,
    "offers": offers,
    "launch": launch,
    "machines": machines,
    "tag_machine": tag_machine,
    "look": look,
    "drain": drain,
    "log": log,
    "give_back": give_back,
    "install": aws_account.install,
    "grant": aws_account.grant,
    "clean": aws_account.clean,
    "uninstall": aws_account.uninstall,
}
