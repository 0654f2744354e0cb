"""`triptych up`: all four services in one terminal, until Ctrl-C."""

import importlib
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from triptych import _installation
from triptych.addresses import host_port
from triptych.cli.credential_options import FILE
from triptych.cli.processes import DOORS, ServiceReady, running_pipeline
from triptych.cli.terminal.signals import run_in_foreground
from triptych.stages import WORKER_NAMES
from triptych.terminal_text import echo, escape

GATEWAY_PORT = 50050
HTTP_PORT = 8080
# Options of `triptych serve gateway` that are its own matter here, or have no meaning: the stages are this command's.
OWN = (
    *("host", "port", "http_port", "tokens", "tls_cert", "tls_key", "insecure"),
    *(*WORKER_NAMES, "workers_file", "stage_ca", "stage_cert", "stage_key"),
    "exit_with_parent",
    # Given by the process that starts this one.
    "grace",
)


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the further options of `triptych serve gateway`, as they are there."""
    # Not an import: the client is of use without the gateway.
    if not _installation.add_server_to_path():
        raise click.ClickException(_installation.missing_server())
    served: click.Command = importlib.import_module("gateway.command").serve
    for parameter in reversed(served.params):
        if parameter.name not in OWN and isinstance(parameter, click.Option):
            command.__dict__.setdefault("__click_params__", []).append(parameter)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --generator-model and the like, each once for every model served."""
    for name in reversed(WORKER_NAMES):
        command = click.option(
            f"--{name}-model",
            metavar="NAME|FOLDER",
            multiple=True,
            help=f"What the {name} loads; repeat it to serve several, the first by default.  [default: tiny]",
        )(command)
    return command


@click.command()
@click.option(
    "--host", default="127.0.0.1", help="Address that the gateway listens on; the stages stay on loopback."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=GATEWAY_PORT,
    help="Port of the gateway; 0: any free port.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=HTTP_PORT,
    help="Port of the page and the HTTP API; 0: any free port.",
)
@click.option("--tokens", type=FILE, help="Tokens from `triptych tokens add`.")
@click.option("--tls-cert", type=FILE, help="The gateway's certificate.")
@click.option("--tls-key", type=FILE, help="Its key.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without certificates and tokens.")
@model_options
@gateway_options
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
    """Start the three stages and the gateway and keep them running until Ctrl-C.

    The options of `triptych serve gateway` that say where runs are kept, and how much is done at once, are here, too.
    """
    stages = {
        name if place == 1 else f"{name} {place}": ["--port", "0", *(["--model", model] if model else [])]
        for name in WORKER_NAMES
        for place, model in enumerate(settings.pop(f"{name}_model") or [None], 1)
    }
    options = ["--host", host, "--port", str(port), "--http-port", str(http_port)]
    for option, path in (("--tokens", tokens), ("--tls-cert", tls_cert), ("--tls-key", tls_key)):
        options += [option, str(path)] if path else []
    options += ["--insecure"] if insecure else []
    options += passed_on(settings)
    # Models take long to load: what cannot be listened on is found before that.
    for name, number in (
        ("--port", port),
        ("--http-port", http_port),
        ("--metrics-port", settings.get("metrics_port")),
        ("--health-port", settings.get("health_port")),
    ):
        if number:
            check_port(host, number, name)
    run_in_foreground(keep_running(stages, options))


def passed_on(settings: Mapping[str, Any]) -> list[str]:
    """The gateway's options that were set, as they are given to it."""
    context = click.get_current_context()
    options: list[str] = []
    for parameter in context.command.params:
        value = settings.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in settings or source is click.core.ParameterSource.DEFAULT:
            continue
        if (
            source is click.core.ParameterSource.ENVIRONMENT
            and f"TRIPTYCH_{parameter.name.upper()}" not in DOORS
        ):
            # The gateway reads it itself, and `ps` would show the password of a journal's URL.
            continue
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, bool):
                options += [parameter.opts[0]] if one else []
            elif one is not None:
                options += [parameter.opts[0], str(one)]
    return options


def check_port(host: str, port: int, option: str) -> None:
    """Raises ClickException where nothing could listen there now."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As the servers themselves: a connection that was closed just now is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host_port(host, port)}: {error.strerror or error}; is `triptych up` running already? "
            f"Choose another {option}, or 0 for any free one"
        ) from None


async def keep_running(stages: dict[str, list[str]], gateway_options: list[str]) -> None:
    """Runs until it is cancelled; raises ClickException when one of the services ends by itself."""
    echo(f"starting {', '.join([*stages, 'gateway'])} ...", err=True)
    async with running_pipeline(
        stages, gateway_options=gateway_options, on_ready=say_ready, on_log=say_log
    ) as pipeline:
        address = pipeline.gateway.address
        scheme = "https" if "--tls-cert" in gateway_options else "http"
        page = f" The page: {scheme}://{pipeline.gateway.http}/" if pipeline.gateway.http else ""
        echo(f"Ready.{page}")
        echo(f'In another terminal: triptych run "a red house" --gateway {address}')
        echo("Ctrl-C stops all of them.", err=True)
        raise click.ClickException(await pipeline.first_end())


def say_ready(name: str, ready: ServiceReady) -> None:
    echo(escape(f"{name:<11} {ready.address:<22} {ready.model}".rstrip()))


def say_log(name: str, line: str) -> None:
    echo(f"[{name}] {escape(line)}", err=True)
