"""EC2 instances by their tags. Runs in Meadowrun's own environment, behind the bridge."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import boto3
import botocore.exceptions
from meadowrun.aws_integration.management_lambdas import adjust_ec2_instances

TAG = "triptych:"
# What a machine is in that may cost something.
KEPT = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}

Json = dict[str, Any]


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
