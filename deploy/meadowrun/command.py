"""`triptych deploy meadowrun`: the options for machines, and the setup of an AWS account."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from deploy.deployer import STAGES, check_name
from deploy.meadowrun.bridge_client import Bridge
from deploy.meadowrun.deployer import MeadowrunDeployer, bridge_of
from deploy.meadowrun.jobs import Needs, Settings
from deploy.place import FOLDER, Place, folder_of, local_gateway, name_option, requested_state
from triptych.cli.terminal.spinner import spinning
from triptych.stages import WORKER_NAMES
from triptych.terminal_text import echo


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--generator-model and the like."""
    for stage in reversed(STAGES):
        command = click.option(f"--{stage}-model", default="tiny", show_default=True)(command)
    return command


@click.group(no_args_is_help=True)
@name_option
@click.option("--region", envvar="AWS_DEFAULT_REGION", default="us-east-2", show_default=True, help="Of AWS.")
@click.option(
    "--image",
    default="",
    help="What workers are started from: registry/triptych-{stage}:tag, for the images of deploy/Dockerfile.",
)
@click.option(
    "--interpreter",
    default="",
    help="Instead of images: the Python of Triptych in a machine image of your own (--ami).",
)
@click.option("--ami", default="", help="A machine image instead of Meadowrun's.")
@click.option("--cpus", type=click.FloatRange(1), default=Needs.logical_cpu, show_default=True)
@click.option("--memory", type=click.FloatRange(1), default=Needs.memory_gb, show_default=True, help="GB.")
@click.option(
    "--gpu-memory",
    type=click.FloatRange(0),
    default=Needs.gpu_memory,
    show_default=True,
    help="GB; 0: machines without a GPU.",
)
@click.option(
    "--max-eviction",
    type=click.FloatRange(0, 100),
    default=Needs.max_eviction_rate,
    show_default=True,
    help="Percent of such machines that are taken away in a month; 0: none, so no spot machines.",
)
@model_options
@click.option(
    "--s3-cache", envvar="TRIPTYCH_S3_CACHE", default="", help="s3://BUCKET/PREFIX with the models."
)
@click.option(
    "--certificates", type=FOLDER, help="Of `triptych certs`: workers then listen to their gateway alone."
)
@click.option("--insecure", is_flag=True, help="Let prompts and pictures cross the network as they are.")
@click.pass_context
def meadowrun(
    ctx: click.Context,
    /,
    name: str,
    region: str,
    image: str,
    interpreter: str,
    ami: str,
    cpus: float,
    memory: float,
    gpu_memory: float,
    max_eviction: float,
    s3_cache: str,
    certificates: Path | None,
    insecure: bool,
    **models: str,
) -> None:
    """On EC2 spot machines, by Meadowrun; the gateway runs here.

    `install` and `grant` first, once for an account.
    """
    needs = Needs(
        cpus,
        memory,
        gpus=1 if gpu_memory else None,
        gpu_memory=gpu_memory or None,
        flags="nvidia" if gpu_memory else None,
        max_eviction_rate=max_eviction,
    )
    settings = Settings(
        region,
        image=image,
        interpreter=interpreter,
        ami=ami,
        needs=dict.fromkeys(STAGES, needs),
        options={stage: ["--model", models[f"{stage}_model"]] for stage in STAGES},
        environment={"TRIPTYCH_S3_CACHE": s3_cache} if s3_cache else {},
        certificates=certificates,
        insecure=insecure,
    )
    bridge = bridge_of(folder_of("meadowrun", name), partial(echo, err=True))
    deployer = MeadowrunDeployer(check_name(name), settings, bridge)
    gateway, list_path = local_gateway("meadowrun", name, *deployer.gateway_options)
    ctx.obj = Place(deployer, gateway, list_path, requested_state("meadowrun", name))
    ctx.meta["meadowrun"] = bridge, region


@meadowrun.command()
@click.option(
    "--allow-authorize-ips/--no-allow-authorize-ips",
    default=True,
    help="Whether users may open ssh and the workers' ports for the addresses that they call from.",
)
@click.pass_context
def install(ctx: click.Context, allow_authorize_ips: bool) -> None:
    """Make what Meadowrun needs in the account: roles, a key, a table, functions that end idle machines. As an administrator."""
    bridge, region = _of(ctx)
    bridge.ask("install", region=region, allow_authorize_ips=allow_authorize_ips)
    echo(f"Meadowrun is installed in {region}")


@meadowrun.command()
@click.argument("bucket")
@click.pass_context
def grant(ctx: click.Context, bucket: str) -> None:
    """Let machines read and write BUCKET, with the models. As an administrator."""
    bridge, region = _of(ctx)
    bucket = bucket.removeprefix("s3://").partition("/")[0]
    bridge.ask("grant", region=region, bucket=bucket)
    echo(f"Meadowrun's machines may read and write s3://{bucket}")


@meadowrun.command("cache")
@click.argument("model")
@click.option("--stage", type=click.Choice(list(WORKER_NAMES)), required=True)
@click.option("--from", "origin", metavar="PLACE", default="", help="As of `triptych weights pull`.")
@click.pass_obj
def cache_weights(place: Place, model: str, stage: str, origin: str) -> None:
    """Fetch MODEL to a cheap machine without a GPU, and from there into the S3 cache."""
    assert isinstance(place.deployer, MeadowrunDeployer)  # noqa: S101 - the group above made it
    place.deployer.cache_weights(stage, model, origin=origin)
    echo(f"{stage} {model} is in the S3 cache")


@meadowrun.command()
@click.option("--active", is_flag=True, help="End all of Meadowrun's machines, those that work included.")
@click.option("--yes", is_flag=True, help="Do not ask before machines that work are ended.")
@click.pass_context
def cleanup(ctx: click.Context, active: bool, yes: bool) -> None:
    """End Meadowrun's machines that do nothing, of all deployments, and remove what jobs left."""
    bridge, region = _of(ctx)
    if active and not yes:
        click.confirm(
            f"This ends all of Meadowrun's machines in {region}, those of other users and deployments included. Go on?",
            abort=True,
        )
    with spinning(f"cleaning up in {region}"):
        bridge.ask("clean", region=region, active=active)
    echo(f"cleaned up in {region}")


@meadowrun.command()
@click.confirmation_option(prompt="This ends all of Meadowrun's machines in the region. Go on?")
@click.pass_context
def uninstall(ctx: click.Context) -> None:
    """End all of Meadowrun's machines and remove all that `install` made. As an administrator."""
    bridge, region = _of(ctx)
    bridge.ask("uninstall", region=region)
    echo(f"Meadowrun is removed from {region}")


def _of(ctx: click.Context) -> tuple[Bridge, str]:
    bridge, region = ctx.meta["meadowrun"]
    return bridge, region
