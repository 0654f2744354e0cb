"""`triptych deploy`: the pipeline at a place, each stage with as many workers as it needs.

What is running is asked of the place each time; the folder of a deployment holds logs and the list of workers that the
gateway reads, and may be lost.
"""

import json
import time
from pathlib import Path

import click

from deploy.deployer import STAGES, DeployError, Worker
from deploy.deployment import Deployment
from deploy.local import GATEWAY, LocalDeployer
from services.model_cache import user_cache

LIST = "workers.json"
GATEWAY_START_S = 60.0


@click.group(no_args_is_help=True)
def deploy() -> None:
    """Run the pipeline at a place, and scale each stage of it."""


@deploy.group(no_args_is_help=True)
@click.option("--name", default="default", help="Of the deployment; several can be at one place.")
@click.pass_context
def local(ctx: click.Context, name: str) -> None:
    """On this machine, as processes that go on when the command has ended."""
    folder = user_cache() / "deployments" / name
    ctx.obj = LocalDeployer(name, folder), folder


Place = tuple[LocalDeployer, Path]


@local.command()
@click.option("--generators", type=click.IntRange(1), default=1, help="How many of them.")
@click.option("--refiners", type=click.IntRange(1), default=1, help="How many of them.")
@click.option("--upscalers", type=click.IntRange(1), default=1, help="How many of them.")
@click.option("--port", type=click.IntRange(0, 65535), default=50050, help="Of the gateway; 0: any free one.")
@click.option(
    "--http-port", type=click.IntRange(0, 65535), default=8080, help="Of the page; 0: any free one."
)
@click.pass_obj
def up(place: Place, generators: int, refiners: int, upscalers: int, port: int, http_port: int) -> None:
    """Start what is missing: the workers, and a gateway in front of them."""
    deployer, folder = place
    wanted = dict(zip(STAGES, (generators, refiners, upscalers), strict=True))
    deployment = Deployment(deployer, folder / LIST, click.echo)
    deployment.scale(wanted)
    if not any(service == GATEWAY for service, _ in deployer.processes()):
        options = ["--port", str(port), "--http-port", str(http_port), "--workers-file", str(folder / LIST)]
        process = deployer.start(GATEWAY, options)
        said = _first_words(deployer, str(process.pid))
        click.echo(f"gateway serves at {said['address']}, its page at http://{said['http']}")


@local.command()
@click.option("--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one JSON object a line.")
@click.pass_obj
def status(place: Place, as_json: bool) -> None:
    """List the deployment's workers as they are now."""
    deployer, _ = place
    workers = deployer.endpoints()
    for worker in workers:
        click.echo(json.dumps(worker.__dict__) if as_json else _line(worker))
    if not workers and not as_json:
        click.echo(
            f"nothing of the deployment '{deployer.name}' runs here; `triptych deploy local up` starts it"
        )


@local.command()
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("count", type=click.IntRange(1))
@click.pass_obj
def scale(place: Place, stage: str, count: int) -> None:
    """Run COUNT workers of STAGE from now on. Those that are too many finish what they make first."""
    deployer, folder = place
    Deployment(deployer, folder / LIST, click.echo).scale({stage: count})


@local.command()
@click.argument("worker")
@click.option("--lines", type=click.IntRange(1), default=50, help="How many of them.")
@click.pass_obj
def logs(place: Place, worker: str, lines: int) -> None:
    """Print the end of a WORKER's log; `status` says their numbers. `gateway` is one, too."""
    deployer, _ = place
    if worker == GATEWAY:
        worker = next((str(process.pid) for name, process in deployer.processes() if name == GATEWAY), worker)
    click.echo(deployer.logs(worker, num_lines=lines))


@local.command()
@click.pass_obj
def down(place: Place) -> None:
    """End everything that belongs to the deployment."""
    deployer, folder = place
    num_processes = len(list(deployer.processes()))
    left = Deployment(deployer, folder / LIST, click.echo).down()
    if left.things:
        raise DeployError(
            f"could not end {', '.join(left.things)}; they cost {left.price_per_hour:g} an hour"
        )
    click.echo(f"ended {num_processes} processes; nothing is left")


def _line(worker: Worker) -> str:
    return f"{worker.stage:<10} {worker.id:<8} {worker.state.value:<9} {worker.address or '-':<22} {worker.machine}"


def _first_words(deployer: LocalDeployer, worker_id: str) -> dict[str, str]:
    """What a service says when it serves, out of its log. Raises DeployError when it ends instead."""
    until = time.monotonic() + GATEWAY_START_S
    while time.monotonic() < until:
        log = deployer.logs(worker_id, num_lines=1000)
        for line in log.splitlines():
            if line.startswith('{"service"'):
                said: dict[str, str] = json.loads(line)
                return said
        if not deployer.is_running(worker_id):
            raise DeployError(f"the gateway did not start:\n{deployer.logs(worker_id, num_lines=5)}")
        time.sleep(0.2)
    raise DeployError(
        f"the gateway does not serve after {GATEWAY_START_S:.0f} s; see `triptych deploy local logs gateway`"
    )
