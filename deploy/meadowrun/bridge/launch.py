"""Makes Meadowrun start machines with our tags, one per worker. Runs in its own environment.

Meadowrun looks for machines and starts them; here it gets the machines that it may use, and their tags.
"""

import contextvars
import os
import shlex
from collections.abc import Mapping
from typing import Any

import boto3
import botocore.exceptions
import meadowrun
import meadowrun.ssh
from instances import TAG, described, release, tag, tags_of  # type: ignore[import-not-found]  # as that one
from meadowrun.aws_integration import ec2_instance_allocation as allocation
from meadowrun.aws_integration.ec2_ssh_keys import get_meadowrun_ssh_key
from meadowrun.instance_allocation import allocate_single_job_to_instance
from meadowrun.run_job_core import WaitOption
from ssh_connections import connected  # type: ignore[import-not-found]  # beside this file

# On machines, for all jobs of one.
FOLDER = "/var/meadowrun"
Json = dict[str, Any]

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
    """Meadowrun's machines. Only those without a worker are reused; new ones are tagged at their start."""

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
