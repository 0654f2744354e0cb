"""`triptych serve STAGE`: the options that every stage has, and the process from loading to shutdown.

A stage's command is a click command under `stage_options` that ends in `run_stage`. The model is loaded and warmed up
while the server already answers health checks; it reports SERVING only then.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import click
import grpc

from services.engine.engine import Engine
from services.errors import TriptychError
from services.serving.channels import STAGE_SERVER_OPTIONS
from services.serving.listen_options import certificate_of, check_address, tls_options
from services.serving.log_format import describe_options, start_logging
from services.serving.metrics import StageMetrics, serving_metrics
from services.serving.request_log import RequestLog
from services.serving.server import announce, serving, stop_signal
from services.serving.spot_notices import EC2_METADATA, SpotNotices
from services.serving.stage_service import Job, Loaded, ServeOptions, StageService
from services.serving.tls import CertificateFiles
from services.serving.tracing.setup import start_tracing, stop_tracing
from triptych import __version__
from triptych.stages import STAGES

log = logging.getLogger(__name__)


def stage_options(
    worker_name: str, *, slots: int, devices: str = "cpu or cuda"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The click options of a stage's command; they arrive as one `options: ServeOptions` beside the stage's own."""
    ports = {stage.worker_name: stage.port for stage in STAGES}
    decorators = [
        click.option("--model", default="tiny", show_default=True, envvar="TRIPTYCH_MODEL", help="A model folder, or the name of a known model."),
        click.option("--host", default="127.0.0.1", show_default=True, envvar="TRIPTYCH_HOST", help="Address to listen on."),
        click.option("--port", type=click.IntRange(0, 65535), default=ports[worker_name], show_default=True, envvar="TRIPTYCH_PORT", help="Port to listen on; 0: any free port."),
        click.option("--slots", type=click.IntRange(1, 256), default=slots, show_default=True, envvar="TRIPTYCH_SLOTS", help="Images that one step computes together."),
        click.option("--max-queue", type=click.IntRange(0), default=128, show_default=True, envvar="TRIPTYCH_MAX_QUEUE", help="Images that wait for a slot; more are refused with QUEUE_FULL."),
        click.option("--threads", type=click.IntRange(1), default=None, envvar="TRIPTYCH_THREADS", help="CPU threads of the network.  [default: all cores]"),
        click.option("--device", default="auto", show_default=True, envvar="TRIPTYCH_DEVICE", help=f"{devices}; auto: the accelerator, if there is one."),
        click.option("--grace", type=click.FloatRange(0), default=30.0, show_default=True, envvar="TRIPTYCH_GRACE", help="Seconds that running calls have to finish after SIGTERM."),
        click.option("--exit-with-parent", is_flag=True, help="Stop when standard input ends."),
        click.option("--metrics-port", type=click.IntRange(0, 65535), default=None, envvar="TRIPTYCH_METRICS_PORT", help="Port of GET /metrics for Prometheus; 0: any free port.  [default: no metrics]"),
        click.option("--spot-notices", metavar="URL", envvar="TRIPTYCH_SPOT_NOTICES", is_flag=False, flag_value=EC2_METADATA, default=None, help=f"Stop, and hand over, when the machine is about to be taken away: asks {EC2_METADATA}, or URL."),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True, envvar="TRIPTYCH_LOG_LEVEL"),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, envvar="TRIPTYCH_LOG_FORMAT", help="json: one object a line, with the fields of what happened."),
    ]  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def gather(**values: Any) -> None:
            names = ServeOptions.__dataclass_fields__
            own = {name: value for name, value in values.items() if name not in names}
            command(ServeOptions(**{name: values[name] for name in names}), **own)

        gather.__doc__ = command.__doc__
        gather.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined] # click's own place for options that decorators below this one added
        decorated: Callable[..., None] = tls_options(gather)
        for option in reversed(decorators):
            decorated = option(decorated)
        return decorated

    return decorate


def run_stage(
    service: StageService[Loaded, Job],
    add_to_server: Callable[[Any, grpc.aio.Server], None],
    load: Callable[[], Loaded],
    *,
    service_name: str,
    options: ServeOptions,
) -> None:
    """Serves one stage until SIGTERM or Ctrl-C. Raises TriptychError when it cannot start."""
    start_logging(options.log_level, options.log_format)
    files = certificate_of(options.tls_cert, options.tls_key, options.tls_client_ca)
    # A stage has no tokens: client certificates alone control access.
    safe = {
        "--tls-cert": options.tls_cert,
        "--tls-key": options.tls_key,
        "--tls-client-ca": options.tls_client_ca,
    }
    check_address(options.host, options=safe, insecure=options.insecure)
    start_tracing(_name_of(service_name))
    try:
        asyncio.run(_run_stage(service, add_to_server, load, service_name, options, files))
    finally:
        stop_tracing()


def _name_of(service_name: str) -> str:
    """ "triptych.v1.GeneratorService" -> "generator"."""
    return service_name.split(".")[-1].removesuffix("Service").lower()


async def _run_stage(
    service: StageService[Loaded, Job],
    add_to_server: Callable[[Any, grpc.aio.Server], None],
    load: Callable[[], Loaded],
    service_name: str,
    options: ServeOptions,
    files: CertificateFiles | None,
) -> None:
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(
            stop_signal(grace_s=options.grace, with_parent=options.exit_with_parent, ends_process=True)
        )
        name = _name_of(service_name)
        metrics = StageMetrics(name)
        server = serving(
            lambda grpc_server: add_to_server(service, grpc_server),
            services=[service_name],
            host=options.host,
            port=options.port,
            grace_s=stop.left_s,
            certificate=files,
            health_port=options.health_port,
            options=STAGE_SERVER_OPTIONS,
            request_log=RequestLog(metrics.registry),
        )
        # Calls must end before the engine does, so the server is entered after it, once the model is there; until
        # then it is entered here, to answer health checks and to find a port in use before minutes of loading.
        running = await server.__aenter__()
        try:
            loaded = await _load_unless(stop, load)
            engine = Engine(loaded.stepper, max_queue=options.max_queue)
            await stack.enter_async_context(engine)
        except BaseException:
            await server.__aexit__(None, None, None)
            raise
        stack.push_async_exit(server.__aexit__)
        stack.enter_context(serving_metrics(metrics.registry, options.host, options.metrics_port))
        service.set_ready(loaded, engine, metrics)
        await running.set_serving(True)
        log.info(
            "serving %s '%s' on %s (%s)",
            name,
            loaded.info.name,
            running.address,
            loaded.info.device,
            extra={
                "event": "started",
                "version": __version__,
                "address": running.address,
                "model": loaded.info.name,
                "model_digest": loaded.info.digest,
                "device": loaded.info.device,
                "options": describe_options(asdict(options)),
            },
        )
        announce(name, running.address, model=loaded.info.name)
        if options.spot_notices:
            stopping = asyncio.create_task(_stop_at_notice(SpotNotices(options.spot_notices), stop))
            stack.callback(stopping.cancel)
        waits = [asyncio.create_task(event.wait()) for event in (stop, engine.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if engine.failed.is_set():
            raise TriptychError("the engine stopped because of a bug; see the log above")
        log.info("stopping; running calls have %.0f s", options.grace)


async def _stop_at_notice(notices: SpotNotices, stop: asyncio.Event) -> None:
    notice = await notices.wait()
    log.warning("this machine is to %s at %s: nothing new is taken here", notice.action, notice.time)
    stop.set()


async def _load_unless(stop: asyncio.Event, load: Callable[[], Loaded]) -> Loaded:
    """Loads and warms up on a thread of its own; a stop meanwhile ends the process at once."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Loaded] = loop.create_future()

    def deliver(result: Loaded | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def work() -> None:
        try:
            loaded = load()
            loaded.stepper.warm_up()
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            loop.call_soon_threadsafe(deliver, None, error)
        else:
            loop.call_soon_threadsafe(deliver, loaded, None)

    threading.Thread(target=work, name="load", daemon=True).start()
    stopped = asyncio.create_task(stop.wait())
    either: list[asyncio.Future[Any]] = [stopped, future]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not future.done():
        log.info("stopped while loading")
        sys.stderr.flush()
        # Nobody can be served yet, and a compiler cannot be interrupted: waiting for it would only look like a hang.
        os._exit(0)
    stopped.cancel()
    return future.result()
