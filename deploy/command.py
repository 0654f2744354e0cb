"""`triptych deploy`: runs the pipeline on a target, with any number of workers per stage.

Each place is a group with its own options that locate things (a Place); the commands below it are the same
everywhere. What is running is asked of the place each time; the folder of a deployment holds logs and the list of workers
that the gateway reads, and may be lost.
"""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from deploy.deployer import STAGES, DeployError, State, Worker, check_name
from deploy.gateway import GATEWAY, LocalGateway
from deploy.local.deployer import LocalDeployer
from deploy.log_lines import Since, lines_since
from deploy.meadowrun.command import meadowrun
from deploy.place import FILE, FOLDER, LIST, Place, folder_of, local_gateway, name_option, requested_state
from deploy.requested_state import GatewayRequest, Requested
from triptych.cli.terminal.spinner import spinning
from triptych.terminal_text import echo, escape_json

# More than any log has.
ALL_LINES = 10_000_000


@click.group(no_args_is_help=True)
def deploy() -> None:
    """Run the pipeline at a place, and scale each stage of it."""


@deploy.group(no_args_is_help=True)
@name_option
@click.pass_context
def local(ctx: click.Context, name: str) -> None:
    """On this machine, as processes that go on when the command has ended."""
    folder = folder_of("local", name)
    deployer = LocalDeployer(check_name(name), folder)
    gateway = LocalGateway(deployer.processes, ["--workers-file", str(folder / LIST)])
    ctx.obj = Place(deployer, gateway, folder / LIST, requested_state("local", name))


@deploy.group(no_args_is_help=True)
@name_option
@click.option(
    "--machines",
    type=FILE,
    required=True,
    help="The machines, in TOML: docs/operations/deploy-ssh.md shows one.",
)
@click.option(
    "--certificates", type=FOLDER, help="Of `triptych certs`: workers then listen to their gateway alone."
)
@click.pass_context
def ssh(ctx: click.Context, name: str, machines: Path, certificates: Path | None) -> None:
    """On machines of one's own, by ssh; the gateway runs here."""
    from deploy.ssh.deployer import SshDeployer
    from deploy.ssh.machine_list import read_machines

    warn = partial(echo, err=True)
    listed = read_machines(machines)
    deployer = SshDeployer(check_name(name), listed, certificates=certificates, tell=warn)
    gateway, list_path = local_gateway("ssh", name, *deployer.gateway_options)
    ctx.obj = Place(deployer, gateway, list_path, requested_state("ssh", name))


@deploy.group(no_args_is_help=True)
@name_option
@click.option(
    "--compose-file",
    "files",
    type=FILE,
    multiple=True,
    help="In place of the project's docker-compose.yml; several go over one another.  [default: docker-compose.yml]",
)
@click.option("--gpu", is_flag=True, help="Give the stages an NVIDIA device: docker-compose.gpu.yml over it.")
@click.option("--build", is_flag=True, help="Build the container images first, even if they exist.")
@click.option("--monitoring", is_flag=True, help="Start Prometheus and Grafana, too.")
@click.pass_context
def compose(
    ctx: click.Context, name: str, files: tuple[Path, ...], gpu: bool, build: bool, monitoring: bool
) -> None:  # fmt: skip
    """As containers of a Docker engine, by docker-compose.yml; the gateway is one of them."""
    from deploy.compose.build_context import compose_folder
    from deploy.compose.deployer import COMPOSE_FILE, GPU_FILE, ComposeDeployer, ComposeGateway

    ours = [] if files else [COMPOSE_FILE]
    ours += [GPU_FILE] if gpu else []
    folder = compose_folder() if ours else Path()
    deployer = ComposeDeployer(check_name(name), [*files, *(folder / file for file in ours)])
    gateway = ComposeGateway(deployer.engine, monitoring=monitoring)
    state = requested_state("compose", name)
    ctx.obj = Place(deployer, gateway, None, state, deployer.engine.build if build else lambda: None)


@click.command()
@click.pass_obj
def plan(place: Place) -> None:
    """Say what workers could run on, and what that costs; start nothing."""
    with spinning("asking for machines and prices"):
        offers = place.deployer.plan()
    for offer in offers:
        evictions = (
            "" if not offer.evictions_per_hour else f", taken away in {offer.evictions_per_hour:.2%} of hours"
        )
        spot = "spot" if offer.is_spot else "on demand"
        note = f"  ({offer.note})" if offer.note else ""
        echo(f"{offer.machine:<40} {offer.price_per_hour:>8.4g} an hour, {spot}{evictions}{note}")


def count_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--generators, --refiners and so on."""
    for stage in reversed(STAGES):
        command = click.option(f"--{stage}s", type=click.IntRange(1), default=1, help="How many of them.")(
            command
        )
    return command


@click.command()
@count_options
@click.option(
    "--port", type=click.IntRange(0, 65535), default=50050, help="Port of the gateway; 0: any free port."
)
@click.option(
    "--http-port", type=click.IntRange(0, 65535), default=8080, help="Port of the page; 0: any free port."
)
@click.option(
    "--http-allowed-host",
    "http_hosts",
    multiple=True,
    help="A host name that HTTP accepts; as of `triptych serve gateway`.",
)
@click.pass_obj
def up(place: Place, /, port: int, http_port: int, http_hosts: tuple[str, ...], **counts: int) -> None:
    """Start what is missing: the workers, and a gateway in front of them."""
    place.deployment.check_owner()
    place.prepare()
    place.state.request_gateway(GatewayRequest(port, http_port, http_hosts))
    with place.watched("waiting for workers") as deployment:
        deployment.scale({stage: counts[f"{stage}s"] for stage in STAGES})
    with spinning("waiting for the gateway"):
        started = place.gateway.start(GatewayRequest(port, http_port, http_hosts))
    # A gateway that is started again must be where its clients know it.
    if started.address:
        port, http_port = (int(address.rpartition(":")[2]) for address in (started.address, started.http))
        place.state.request_gateway(GatewayRequest(port, http_port, http_hosts))
    echo(started.line)


@click.command()
@click.option("--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """List the workers as they are now, and compare with what was requested; exits with 1 if something is missing."""
    place: Place = ctx.obj
    with spinning("asking the workers"):
        workers = place.deployer.endpoints()
        problem = place.gateway.problem()
    stored = place.state.read()
    is_gateway_wanted = stored is None or stored.gateway is not None
    # What `up` starts at least, where it is not known here what was requested.
    requested = dict((stored or Requested()).workers) or dict.fromkeys(STAGES, 1)
    serving = {
        stage: sum(one.stage == stage and one.state is State.SERVING for one in workers)
        for stage in requested
    }
    if is_gateway_wanted or not problem:
        requested[GATEWAY], serving[GATEWAY] = 1, int(not problem)
    is_complete = all(serving[name] >= number for name, number in requested.items())
    if as_json:
        for worker in workers:
            echo(escape_json(json.dumps(asdict(worker))))
        for name, number in requested.items():
            echo(escape_json(json.dumps({"service": name, "serving": serving[name], "requested": number})))
        ctx.exit(0 if is_complete else 1)
    for worker in workers:
        echo(_line(worker))
    if not workers and stored is None:
        echo(f"no worker of the deployment '{place.deployer.name}' runs here; `up` starts them")
        ctx.exit(1)
    if stored is None:
        echo("what was requested is not known here, so one of each is expected; `scale` stores it")
    for name, number in requested.items():
        starting = sum(one.stage == name and one.state is State.STARTING for one in workers)
        note = (
            f"  ({starting} starting)"
            if starting
            else f"  ({problem})"
            if name == GATEWAY and problem
            else ""
        )
        echo(f"{name} {serving[name]} of {number}{note}")
    if price := sum(worker.price_per_hour for worker in workers):
        echo(f"all workers cost {price:.4g} an hour")
    ctx.exit(0 if is_complete else 1)


@click.command()
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("count", type=click.IntRange(1))
@click.pass_obj
def scale(place: Place, stage: str, count: int) -> None:
    """Run COUNT workers of STAGE from now on. Those that are too many finish what they make first."""
    with place.watched(f"waiting for {stage}s") as deployment:
        deployment.scale({stage: count})


@click.command()
@click.argument("worker")
@click.option("--lines", type=click.IntRange(1), help="How many of them.  [default: 50; all with --since]")
@click.option(
    "--since", type=Since(), help="Only those since then: 90s, 10m, 1h30m ago, or a time in ISO 8601."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C or the worker's end.")
@click.pass_obj
def logs(place: Place, worker: str, lines: int | None, since: datetime | None, follow: bool) -> None:
    """Print the end of a WORKER's log; `status` lists their names. `gateway` is one, too."""
    num_lines = lines or (ALL_LINES if since else 50)
    if follow:
        read = (
            place.gateway.follow_log(num_lines=num_lines)
            if worker == GATEWAY
            else place.deployer.follow_log(worker, num_lines=num_lines)
        )
    elif worker == GATEWAY:
        read = iter(place.gateway.logs(num_lines=num_lines).splitlines())
    else:
        read = iter(place.deployer.logs(worker, num_lines=num_lines).splitlines())
    for line in lines_since(read, since) if since else read:
        echo(line)


@click.command()
@click.option(
    "--every", "every_s", type=click.FloatRange(1), default=15.0, help="Seconds between two checks."
)
@click.pass_obj
def watch(place: Place, every_s: float) -> None:
    """Start again what ends: workers, as many of each stage as were requested, and the gateway; until Ctrl-C or `down`.

    The gateway reads what changed. Runs, workers and gateway go on when this ends.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place.deployment.keep(partial(time.sleep, every_s), place.gateway)


@click.command()
@click.pass_obj
def down(place: Place) -> None:
    """List and end everything that belongs to the deployment, if this user created it."""
    place.deployment.check_owner()
    for worker in place.deployer.endpoints():
        echo(f"ends {worker.stage} {worker.id} on {worker.machine or 'a machine'}")
    if place.gateway.is_running():
        echo("ends the gateway")
    with spinning("waiting for the end of workers and gateway"):
        place.state.delete()
        place.gateway.stop()
        left = place.deployment.down()
    if left.things:
        raise DeployError(
            f"could not end {', '.join(left.things)}; it may cost {left.price_per_hour:g} an hour"
        )
    echo(f"ended the deployment '{place.deployer.name}'; nothing is left")


def add_commands(place: click.Group) -> None:
    """What can be done with a deployment, wherever it is."""
    for command in (plan, up, status, scale, logs, watch, down):
        place.add_command(command)


deploy.add_command(meadowrun)
for place_ in (local, ssh, compose, meadowrun):
    add_commands(place_)


@compose.command("down")
@click.option("--volumes", is_flag=True, help="Delete the volumes, too: runs, images, certificates.")
@click.pass_context
def compose_down(ctx: click.Context, volumes: bool) -> None:
    """End everything that belongs to the deployment; runs and pictures stay, in its volumes."""
    ctx.obj.deployer.delete_volumes = volumes
    ctx.obj.deployer.check_owner()
    for name in ctx.obj.deployer.engine.labelled("volume") if volumes else ():
        echo(f"deletes the volume {name}")
    ctx.invoke(down)


def _line(worker: Worker) -> str:
    line = f"{worker.stage:<10} {worker.id:<8} {worker.state.value:<9} {worker.address or '-':<22} {worker.machine}"
    return f"{line}  ({worker.note})" if worker.note else line
