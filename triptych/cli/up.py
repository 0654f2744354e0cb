"""`triptych up`: all four services in one terminal, until Ctrl-C."""

from pathlib import Path
from typing import Any

import click

from triptych.cli.credential_options import FILE
from triptych.cli.processes import ServiceReady, running_pipeline
from triptych.cli.run_options import STAGES, model_options, models_of
from triptych.cli.signals import run_in_foreground

GATEWAY_PORT = 50050
HTTP_PORT = 8080


@click.command()
@click.option(
    "--host", default="127.0.0.1", help="Address that the gateway listens on; the stages stay on loopback."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=GATEWAY_PORT, help="Of the gateway; 0: any free one."
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=HTTP_PORT,
    help="Of the page and the HTTP interfaces; 0: any free one.",
)
@click.option("--tokens", type=FILE, help="The file of tokens that `triptych tokens add` makes.")
@click.option("--tls-cert", type=FILE, help="The gateway's certificate.")
@click.option("--tls-key", type=FILE, help="Its key.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback even if everybody there can use it.")
@model_options
def up(
    host: str,
    port: int,
    http_port: int,
    tokens: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    **settings: Any,
) -> None:
    """Start the three stages and the gateway and keep them running until Ctrl-C."""
    models = models_of(settings)
    stages = {name: ["--port", "0", *models.get(name, ())] for name in STAGES}
    options = ["--host", host, "--port", str(port), "--http-port", str(http_port)]
    for option, path in (("--tokens", tokens), ("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        options += [option, str(path)] if path else []
    options += ["--insecure"] if insecure else []
    run_in_foreground(keep_running(stages, options))


async def keep_running(stages: dict[str, list[str]], gateway_options: list[str]) -> None:
    """Runs until it is cancelled; raises ClickException when one of the services ends by itself."""
    click.echo(f"starting {', '.join([*stages, 'gateway'])} ...", err=True)
    async with running_pipeline(
        stages, gateway_options=gateway_options, on_ready=say_ready, on_log=say_log
    ) as pipeline:
        address = pipeline.gateway.address
        scheme = "https" if "--tls-cert" in gateway_options else "http"
        page = f" The page: {scheme}://{pipeline.gateway.http}/" if pipeline.gateway.http else ""
        click.echo(f"Ready.{page}")
        click.echo(f'In another terminal: triptych run "a red house" --gateway {address}')
        click.echo("Ctrl-C stops all of them.", err=True)
        raise click.ClickException(await pipeline.first_end())


def say_ready(name: str, ready: ServiceReady) -> None:
    click.echo(f"{name:<10} {ready.address:<22} {ready.model}".rstrip())


def say_log(name: str, line: str) -> None:
    click.echo(f"[{name}] {line}", err=True)
