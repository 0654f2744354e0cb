"""`triptych serve gateway`: its options, checked and handed to server.py."""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from gateway.access.authentication import Authentication
from gateway.access.oidc_options import oidc_options, oidc_verifier_of
from gateway.http.middleware.proxies import TrustedProxies
from gateway.runs.admission import AdmissionLimits
from gateway.runs.retention import DAY_S, RetentionLimits
from gateway.server import GatewayOptions, StorageLocations, run_gateway
from gateway.stages import STAGES
from gateway.webhooks.options import webhook_options, webhook_options_of
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.targets import Target, WorkersFile, parse_target
from services.serving.listen_options import FILE, certificate_of, check_address, tls_options
from services.serving.log_format import describe_options, start_logging
from services.serving.tls import CertificateFiles
from services.serving.tracing.setup import start_tracing, stop_tracing

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class ByteSize(click.ParamType[int, str | int]):
    name = "BYTES"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = value[:-1], value[-1:].upper()
        if unit not in _UNITS:
            number, unit = value, ""
        if not number.isdecimal():
            self.fail(f"expected a number of bytes, such as 500M or 20G, got {value!r}", param, ctx)
        return int(number) * _UNITS[unit]


class TargetType(click.ParamType[Target, str | Target]):
    name = "HOST:PORT"

    def convert(
        self, value: str | Target, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        if isinstance(value, Target):
            return value
        try:
            return parse_target(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def storage_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--journal, --store, --keep-days and --keep-bytes."""
    journal = click.option(
        "--journal",
        default="",
        metavar="PATH|URL|none",
        help="What keeps the runs: a SQLite file, or postgresql://... for several gateways; none: they end with the "
        "process.  [default: journal.db in ~/.local/share/triptych]",
    )
    store = click.option(
        "--store",
        default="",
        metavar="FOLDER|URL",
        help="What keeps the pictures: a folder, or s3://BUCKET/PREFIX.  [default: pictures in the same place]",
    )
    keep_days = click.option(
        "--keep-days",
        type=click.FloatRange(0, min_open=True),
        help="Delete runs that ended longer ago, with their images.  [default: none]",
    )
    keep_bytes = click.option(
        "--keep-bytes",
        type=ByteSize(),
        help="When all images take more, delete the oldest finished runs: 500M, 20G.  [default: no limit]",
    )
    adopt = click.option(
        "--adopt-store",
        is_flag=True,
        help="Use the store although its images belong to another journal; those that no run of this one has are deleted.",
    )
    return journal(store(keep_days(keep_bytes(adopt(command)))))


_WORK_OPTIONS = (
    click.option(
        "--workers-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help='More workers of each stage, as JSON: {"generator": ["HOST:PORT"], ...}; read again when it changes.',
    ),
    click.option(
        "--max-runs", type=click.IntRange(1), default=64, show_default=True, help="Concurrent runs."
    ),
    click.option(
        "--max-queued-runs",
        type=click.IntRange(0),
        default=256,
        show_default=True,
        help="Waiting runs; more are refused with QUEUE_FULL.",
    ),
    click.option(
        "--max-runs-per-caller",
        type=click.IntRange(1),
        help="Concurrent runs of one caller, unless its token has a limit.  [default: all]",
    ),
    click.option(
        "--max-queued-runs-per-caller",
        type=click.IntRange(0),
        default=64,
        show_default=True,
        help="Waiting runs of one caller; more are refused with RATE_LIMITED.",
    ),
    click.option(
        "--stall-timeout",
        type=click.FloatRange(1),
        default=300.0,
        show_default=True,
        help="Seconds without progress after which an image is retried on another worker.",
    ),
    click.option(
        "--worker-timeout",
        type=click.FloatRange(0),
        default=300.0,
        show_default=True,
        help="Seconds that an image waits while its stage has no worker.",
    ),
    click.option(
        "--max-workers-per-image",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="An image fails after so many workers failed on it.",
    ),
)


_HTTP_OPTIONS = (
    click.option(
        "--http-allowed-host",
        multiple=True,
        help="A name that HTTP may be asked by, such as a container's or a proxy's; .DOMAIN: all below it; *: any. "
        "Repeat it for more.",
    ),
    click.option(
        "--http-trusted-proxy",
        multiple=True,
        metavar="ADDRESS|NETWORK",
        help="A proxy in front that is believed what it forwards of callers (Forwarded, X-Forwarded-*), such as "
        "10.0.0.0/8; *: any. Repeat it for more.",
    ),
    click.option(
        "--http-public-url",
        default="",
        metavar="URL",
        help="Where callers reach HTTP, for links to pictures: https://pictures.example.com.  [default: as they ask]",
    ),
)


def http_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--http-allowed-host, --http-trusted-proxy and --http-public-url."""
    for option in reversed(_HTTP_OPTIONS):
        command = option(command)
    return command


def trusted_proxies_of(texts: Collection[str]) -> TrustedProxies:
    """Raises BadParameter."""
    try:
        return TrustedProxies.parse(texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--http-trusted-proxy'") from None


def public_url_of(text: str) -> str:
    """Raises BadParameter."""
    parts = urlsplit(text)
    if text and (
        parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
    ):
        raise click.BadParameter(
            f"expected http://HOST or https://HOST, with a port or path if need be, got {text!r}",
            param_hint="'--http-public-url'",
        )
    return text.rstrip("/")


def work_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of how much is done at once and how long a worker is waited for."""
    for option in reversed(_WORK_OPTIONS):
        command = option(command)
    return command


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--generator and the like, one for each stage."""
    for stage in reversed(STAGES):
        help_text = (
            "as above."
            if stage is not STAGES[0]
            else "repeat it for more. dns:NAME:PORT: one at every address of the name."
        )
        command = click.option(
            f"--{stage.worker_name}",
            type=TargetType(),
            multiple=True,
            default=[f"127.0.0.1:{stage.port}"],
            show_default=True,
            help=f"Address of a {stage.worker_name}; {help_text}",
        )(command)
    return command


@click.command("gateway")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50050,
    show_default=True,
    help="Port to listen on; 0: any free port.",
)
@worker_options
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Port of the page, HTTP and server-sent events; 0: any free port.  [default: no HTTP]",
)
@http_options
@click.option(
    "--examples/--no-examples",
    default=True,
    show_default=True,
    help="Make pictures of the models' example prompts, once, when somebody opens the page for the first time.",
)
@click.option(
    "--stage-ca",
    type=FILE,
    help="Authority of the stages' certificates; without it, no TLS to the stages.",
)
@click.option("--stage-cert", type=FILE, help="Client certificate of this gateway for the stages.")
@click.option("--stage-key", type=FILE, help="Its key.")
@tls_options
@click.option(
    "--tokens",
    type=FILE,
    help="Tokens from `triptych tokens add`; without it everybody can call and sees all runs.",
)
@oidc_options
@webhook_options
@storage_options
@work_options
@click.option(
    "--abandon-grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds after which an attached run without clients is cancelled.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that runs have to finish after SIGTERM; others continue at the next start.",
)
@click.option("--exit-with-parent", is_flag=True, help="Stop when standard input ends.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Port of GET /metrics for Prometheus; 0: any free port.  [default: no metrics]",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object a line, with the fields of what happened.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def serve(
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    insecure: bool,
    tokens: Path | None,
    log_level: str,
    log_format: str,
    **values: Any,
) -> None:
    """Serve the pipeline over the three stages."""
    start_logging(log_level, log_format)
    workers_file = _open_workers_file(values["workers_file"])
    certificate = certificate_of(tls_cert, tls_key, tls_client_ca)
    oidc = oidc_verifier_of(values)
    check_address(
        host,
        options={"--tls-cert": tls_cert, "--tls-key": tls_key, "--tokens": tokens or oidc},
        insecure=insecure,
    )
    keep_days = values["keep_days"]
    options = GatewayOptions(
        targets={stage.name: _named_targets(stage.worker_name, values, workers_file) for stage in STAGES},
        workers_file=workers_file,
        host=host,
        port=port,
        http_port=values["http_port"],
        http_allowed_hosts=values["http_allowed_host"],
        http_trusted_proxies=trusted_proxies_of(values["http_trusted_proxy"]),
        http_public_url=public_url_of(values["http_public_url"]),
        storage=StorageLocations(
            values["journal"],
            values["store"],
            RetentionLimits(None if keep_days is None else keep_days * DAY_S, values["keep_bytes"]),
            values["adopt_store"],
        ),
        admission=AdmissionLimits(
            values["max_runs"],
            values["max_queued_runs"],
            values["max_runs_per_caller"],
            values["max_queued_runs_per_caller"],
        ),
        retry_policy=RetryPolicy(
            stall_timeout_s=values["stall_timeout"],
            worker_timeout_s=values["worker_timeout"],
            max_workers=values["max_workers_per_image"],
        ),
        authentication=Authentication(tokens, oidc),
        certificate=certificate,
        health_port=values["health_port"],
        stage_certificates=stage_certificates_of(
            values["stage_cert"], values["stage_key"], values["stage_ca"]
        ),
        abandon_grace_s=values["abandon_grace"],
        grace_s=values["grace"],
        exit_with_parent=values["exit_with_parent"],
        metrics_port=values["metrics_port"],
        has_examples=values["examples"],
        webhooks=webhook_options_of(values),
        described=describe_options(click.get_current_context().params),
    )
    start_tracing("gateway")
    try:
        asyncio.run(run_gateway(options))
    finally:
        stop_tracing()


def stage_certificates_of(cert: Path | None, key: Path | None, ca: Path | None) -> CertificateFiles | None:
    """What the options name; None without an authority. Raises CertificateError when it cannot be used."""
    if ca is None and (cert is not None or key is not None):
        raise click.UsageError("--stage-cert and --stage-key need --stage-ca beside them")
    return CertificateFiles(cert, key, ca) if ca is not None else None


def _named_targets(
    worker: str, values: dict[str, Any], workers_file: WorkersFile | None
) -> tuple[Target, ...]:
    """The workers that an option names; with a file of workers, the option's default does not count."""
    source = click.get_current_context().get_parameter_source(worker)
    named: tuple[Target, ...] = values[worker]
    return () if workers_file is not None and source is ParameterSource.DEFAULT else named


def _open_workers_file(path: Path | None) -> WorkersFile | None:
    try:
        return None if path is None else WorkersFile(path)
    except ValueError as error:
        raise click.UsageError(f"--workers-file: {error}") from None
