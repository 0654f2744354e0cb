"""What is done on EC2 through Meadowrun, and with its tags. Runs in Meadowrun's own environment, behind the bridge.

The only file that imports Meadowrun, and the only one that speaks to AWS. Of Triptych it knows tags, and commands that
it is given; nothing of it can be imported here.
"""

import asyncio
import contextlib
import contextvars
import datetime
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import asyncssh
import boto3
import botocore.exceptions
import meadowrun
import meadowrun.manage
import meadowrun.ssh
from meadowrun.aws_integration import (
    aws_install_uninstall,
    ec2_instance_allocation as allocation,
    ec2_pricing,
)
from meadowrun.aws_integration.aws_core import (
    _MEADOWRUN_USER_GROUP_NAME,
    MeadowrunAWSAccessError,
    MeadowrunNotInstalledError,
)
from meadowrun.aws_integration.ec2_ssh_keys import get_meadowrun_ssh_key
from meadowrun.aws_integration.management_lambdas import adjust_ec2_instances
from meadowrun.instance_allocation import allocate_single_job_to_instance
from meadowrun.meadowrun_pb2 import ProcessState
from meadowrun.run_job_core import MeadowrunException, WaitOption

TAG = "triptych:"
FOLDER = "/var/meadowrun"
# Meadowrun's own is Python 3.9, which AWS has given up.
LAMBDA_RUNTIME = "python3.13"
# Meadowrun's policy for its users permits its own tag alone; with these they can do what is done here.
USER_ACTIONS = (
    "ec2:CreateTags",
    "ec2:DescribeImages",
    "ec2:DescribeInstances",
    "ec2:ModifyInstanceMetadataOptions",
    "ec2:RunInstances",
    "ec2:TerminateInstances",
)
SSH_TIMEOUT_S = 15.0
# A worker that drains is looked at so often, and its machine given up after so long at the latest.
FOLLOW_EVERY_S = 2.0
FOLLOW_TIMEOUT_S = 300.0
# What a machine is in that may cost something.
KEPT = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}

Json = dict[str, Any]


class Refused(Exception):
    """What cannot be done; says what to do instead."""


# What says enough by itself.
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


# Machines that were chosen here for a worker.
claimed: set[str] = set()
# Each question has its own.
tags_at_launch: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("tags_at_launch")


async def _launch_tagged(
    *args: Any,
    tags: Mapping[str, str],
    launch: Any = allocation.launch_ec2_instances,
    **settings: Any,
) -> Any:
    return await launch(*args, tags={**tags, **tags_at_launch.get()}, **settings)


# It takes no tags of its callers'.
allocation.launch_ec2_instances = _launch_tagged


class TaggedMachine(meadowrun.AllocEC2Instance):  # type: ignore[misc]  # it has no types
    """A machine for one worker: a new one, or one of Meadowrun's that has nothing to do. It carries the tags."""

    def __init__(self, region: str, ami: str, tags: Mapping[str, str], files: Mapping[str, str]) -> None:
        super().__init__(region_name=region, ami_id=ami or None)
        self.tags = tags
        self.files = files
        self.instance = self.address = self.job = ""

    async def run_job(self, resources_required: Any, job: Any, wait_for_result: Any) -> Any:
        region = self._get_region_name()
        key = get_meadowrun_ssh_key(region)
        registrar = IdleMachines(region, self.tags)
        try:
            async with registrar:
                self.address, self.job = await allocate_single_job_to_instance(
                    registrar, resources_required, self, job.ports
                )
                self.instance = registrar.instances[self.address]
            job.job_id = self.job
            tag(region, self.instance, {**self.tags, "job": self.job, "state": "started"})
            self._open_metadata(region)
            await self._prepare()
            host = meadowrun.SshHost(self.address, allocation.SSH_USER, key, ("EC2", region))
            done = await host.run_job(resources_required, job, wait_for_result)
            await host.close_connection()
            if wait_for_result is not WaitOption.DO_NOT_WAIT:
                await registrar.free(self.instance, self.job)
        except BaseException:
            # Nobody would use it, and somebody would pay for it.
            release(region, {*registrar.launched, self.instance} - {""})
            raise
        return done

    def _open_metadata(self, region: str) -> None:
        """Spot notices are asked for in containers, too, which are one hop further than AWS expects."""
        try:
            boto3.client("ec2", region_name=region).modify_instance_metadata_options(
                InstanceId=self.instance, HttpEndpoint="enabled", HttpPutResponseHopLimit=2
            )
        except botocore.exceptions.ClientError as error:
            print(f"containers on {self.instance} may not hear spot notices: {error}")  # noqa: T201 - the bridge passes it on

    async def _prepare(self) -> None:
        """The cache that jobs share, writable for containers that run as users of their own; the worker's files."""
        connection = await connected(self.address, self._get_region_name(), patient=True)
        await connection.run(f"mkdir -p {FOLDER}/machine_cache; chmod 1777 {FOLDER}/machine_cache")
        for path, text in self.files.items():
            await connection.run(f"mkdir -p {shlex.quote(os.path.dirname(path))}", check=True)
            await meadowrun.ssh.write_text_to_file(connection, text, path)


class IdleMachines(allocation.EC2InstanceRegistrar):  # type: ignore[misc]  # it has no types
    """Meadowrun's machines, of which only those without a worker are taken again; new ones are tagged as they begin."""

    def __init__(self, region: str, tags: Mapping[str, str]) -> None:
        super().__init__(region, "raise")
        self.tags = tags
        # By address; and those of them that were started here.
        self.instances: dict[str, str] = {}
        self.launched: list[str] = []

    async def get_registered_instances(self) -> list[Any]:
        registered = await super().get_registered_instances()
        client = boto3.client("ec2", region_name=self.get_region_name())
        running = {
            one["InstanceId"]: one
            for one in described(client, [{"Name": "instance-state-name", "Values": ["running"]}])
        }
        idle = [one for one in registered if one.name in running and self._may_have(running[one.name])]
        self.instances.update({one.public_address: one.name for one in idle})
        return idle

    def _may_have(self, machine: Json) -> bool:
        tags = tags_of(machine)
        others = f"{TAG}worker" in tags or tags.get(f"{TAG}weights") not in (None, self.tags.get("weights"))
        return not others and machine["InstanceId"] not in claimed

    async def allocate_jobs_to_instance(self, instance: Any, resources: Any, jobs: list[str]) -> Any:
        # It gets its tags a little later, and others that are launched at the same time look at it, too.
        if instance.name in claimed:
            return False
        claimed.add(instance.name)
        is_allocated = await super().allocate_jobs_to_instance(instance, resources, jobs)
        if not is_allocated or "weights" in self.tags:
            claimed.remove(instance.name)
        return is_allocated

    async def free(self, instance: str, job: str) -> None:
        """A machine does so itself, if its metadata can be asked in the way that Meadowrun asks."""
        registered = await self.get_registered_instance(instance)
        if job in registered.get_running_jobs():
            await self.deallocate_job_from_instance(registered, job)

    async def launch_instances(self, *arguments: Any) -> Any:
        tags_at_launch.set({f"{TAG}{name}": value for name, value in self.tags.items()})
        launched = await super().launch_instances(*arguments)
        for one in launched:
            self.instances[one.public_dns_name] = one.name
            self.launched.append(one.name)
            kind = one.instance_type.instance_type
            tag(self.get_region_name(), one.name, {"price": f"{kind.price:g}"})
        return launched


def in_words(error: Exception) -> str:
    """What an expected error says, and what to do where it does not say so."""
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return (
            "no AWS credentials were found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return str(error) or type(error).__name__


async def check(region: str, ami: str, gpu: bool) -> Json:
    """Whether a machine could be launched: Meadowrun installed, its image or ours there."""
    ec2 = boto3.client("ec2", region_name=region)
    try:
        get_meadowrun_ssh_key(region)
        allocation.get_ssh_security_group_id(region)
    except MeadowrunNotInstalledError:
        raise Refused(
            f"Meadowrun is not installed in {region}: `triptych deploy meadowrun install` does it, once"
        ) from None
    if ami:
        images, whose = [ami], "the image"
    else:
        known = allocation._AMIS["cuda" if gpu else "plain"]
        if region not in known:
            raise Refused(
                f"Meadowrun has no images in {region}: name another --region ({', '.join(sorted(known))}), or an image of "
                "your own, --ami; docs/operations.md says how to make one"
            )
        images, whose = [known[region]], "Meadowrun's image"
    try:
        found = ec2.describe_images(ImageIds=images)["Images"]
    except botocore.exceptions.ClientError as error:
        if not error.response["Error"]["Code"].startswith("InvalidAMI"):
            raise
        found = []
    if not found:
        raise Refused(
            f"{whose} {images[0]} is not there in {region} any more: make one of your own and name it, --ami; "
            "docs/operations.md says how"
        )
    return {"image": images[0]}


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
    """Runs one job on a machine of its own, and says where."""
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
    """What has become of a job: "starting", "running" or "ended"; "unknown" where its machine cannot be asked."""
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
    """Ends machines; says which of them do not end."""
    release(region, instances)
    left = described(boto3.client("ec2", region_name=region), [KEPT])
    return [one["InstanceId"] for one in left if one["InstanceId"] in instances]


async def install(region: str, allow_authorize_ips: bool) -> None:
    """Meadowrun's own, and the rights that its users lack for what is done here."""
    await aws_install_uninstall.install(region, allow_authorize_ips, None, {})
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": list(USER_ACTIONS), "Resource": "*"}],
    }
    boto3.client("iam", region_name=region).put_group_policy(
        GroupName=_MEADOWRUN_USER_GROUP_NAME, PolicyName="triptych", PolicyDocument=json.dumps(policy)
    )


async def grant(region: str, bucket: str) -> None:
    """Lets machines read and write a bucket."""
    boto3.client("s3", region_name=region).head_bucket(Bucket=bucket)
    meadowrun.manage.grant_permission_to_s3_bucket(bucket, region)


async def clean(region: str, active: bool) -> None:
    """Meadowrun's own: ends machines that do nothing, or all that it started; removes what jobs left."""
    if active:
        aws_install_uninstall.terminate_all_instances(region, False)
    meadowrun.manage._deregister_and_terminate_instances(region, datetime.timedelta.min)
    ec2_pricing.clear_prices_cache()
    meadowrun.manage.aws_delete_old_task_queues(region)
    meadowrun.manage.aws_delete_unused_images(region)


async def uninstall(region: str) -> None:
    """Meadowrun's own: removes all that it made in the account."""
    with contextlib.suppress(botocore.exceptions.ClientError):
        boto3.client("iam", region_name=region).delete_group_policy(
            GroupName=_MEADOWRUN_USER_GROUP_NAME, PolicyName="triptych"
        )
    aws_install_uninstall.delete_meadowrun_resources(region)


DO: dict[str, Callable[..., Awaitable[Any]]] = {
    "check": check,
    "offers": offers,
    "launch": launch,
    "machines": machines,
    "tag_machine": tag_machine,
    "look": look,
    "drain": drain,
    "log": log,
    "give_back": give_back,
    "install": install,
    "grant": grant,
    "clean": clean,
    "uninstall": uninstall,
}


def described(client: Any, filters: Sequence[Json]) -> list[Json]:
    pages = client.get_paginator("describe_instances").paginate(Filters=filters)
    return [one for page in pages for reservation in page["Reservations"] for one in reservation["Instances"]]


def tags_of(instance: Json) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in instance.get("Tags", ())}


def address_of(instance: Json) -> str:
    return instance.get("PublicDnsName") or instance.get("PrivateDnsName") or ""


def tag(region: str, instance: str, tags: Mapping[str, str]) -> None:
    boto3.client("ec2", region_name=region).create_tags(
        Resources=[instance],
        Tags=[{"Key": f"{TAG}{name}", "Value": value} for name, value in tags.items()],
    )


def release(region: str, instances: Collection[str]) -> None:
    """Ends machines, and takes them off Meadowrun's list."""
    if not instances:
        return
    boto3.client("ec2", region_name=region).terminate_instances(InstanceIds=list(instances))
    for instance in instances:
        with contextlib.suppress(botocore.exceptions.ClientError):
            adjust_ec2_instances._deregister_ec2_instance(instance, False, region)


def prepare_session() -> None:
    """Lets Meadowrun's functions run in a Python that there is."""
    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register(
        "provide-client-params.lambda.CreateFunction",
        lambda params, **_: {**params, "Runtime": LAMBDA_RUNTIME},
    )


connections: dict[str, Any] = {}
# One for each of them.
watched: set[asyncio.Task[None]] = set()
# Workers that drain.
followed: set[asyncio.Task[None]] = set()


async def connected(address: str, region: str, *, patient: bool = False) -> Any:
    """A connection that is kept; `patient`: to a machine that has just begun, and may not answer yet."""
    key = get_meadowrun_ssh_key(region) if address not in connections else None
    num_tries = 40 if patient else 1
    while address not in connections:
        num_tries -= 1
        try:
            connection = await asyncio.wait_for(
                meadowrun.ssh.connect(address, allocation.SSH_USER, key), SSH_TIMEOUT_S
            )
        except OSError:
            if not num_tries:
                raise
            await asyncio.sleep(1.0)
        else:
            connections[address] = connection
            watched.add(asyncio.create_task(_forget_when_closed(address, connection)))
    return connections[address]


async def _forget_when_closed(address: str, connection: Any) -> None:
    await connection.wait_closed()
    if connections.get(address) is connection:
        del connections[address]


async def shell(region: str, address: str, script: str) -> str:
    connection = await connected(address, region)
    done = await asyncio.wait_for(connection.run(script), SSH_TIMEOUT_S)
    return str(done.stdout)
