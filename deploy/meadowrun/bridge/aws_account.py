"""Sets up an AWS account for Meadowrun, and checks the setup. Runs in Meadowrun's own environment, behind the bridge."""

import contextlib
import datetime
import json

import boto3
import botocore.exceptions
import meadowrun.manage
from meadowrun.aws_integration import (
    aws_install_uninstall,
    ec2_instance_allocation as allocation,
    ec2_pricing,
)
from meadowrun.aws_integration.aws_core import _MEADOWRUN_USER_GROUP_NAME, MeadowrunNotInstalledError
from meadowrun.aws_integration.ec2_ssh_keys import get_meadowrun_ssh_key

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


class Refused(Exception):
    """A request failed; the message has what to do instead."""


async def check(region: str, ami: str, gpu: bool) -> dict[str, str]:
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
                "your own, --ami; docs/operations/deploy-ec2.md says how to make one"
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
            "docs/operations/deploy-ec2.md says how"
        )
    return {"image": images[0]}


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


def prepare_session() -> None:
    """Lets Meadowrun's functions run in a Python that there is."""
    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register(
        "provide-client-params.lambda.CreateFunction",
        lambda params, **_: {**params, "Runtime": LAMBDA_RUNTIME},
    )
