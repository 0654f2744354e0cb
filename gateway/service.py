"""PipelineService, the gateway's public face, and the command that serves it.

It translates calls to gateway/pipeline.py and back. It imports neither jax nor torch.
"""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import click

from gateway.access.authentication import Authentication, TokenInterceptor, current_caller
from gateway.http.context import Api
from gateway.http.server import serving_http
from gateway.keeping import Places, keep_from, kept_at, kept_options
from gateway.metrics import GatewayMetrics
from gateway.pipeline import Pipeline, check_after_sequence
from gateway.runs.manager import Bounds, Runs
from gateway.stages import GENERATE, REFINE, STAGES, UPSCALE
from gateway.work_options import Work, work_options
from gateway.workers.discovery import Discovery
from gateway.workers.pool import Pool
from gateway.workers.targets import Target, parse_target
from services.errors import InvalidRequest
from services.serving.listen_options import FILE, certificate_of, check_address, tls_options
from services.serving.log_format import start_logging
from services.serving.metrics import serving_metrics
from services.serving.server import Context, announce, serving, stop_signal
from services.serving.tls import CertificateFiles
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    CancelRunResponse,
    CreateRunRequest,
    CreateRunResponse,
    DeleteRunRequest,
    DeleteRunResponse,
    DownloadImageRequest,
    DownloadImageResponse,
    Event,
    GetRunRequest,
    GetRunResponse,
    ListModelsRequest,
    ListModelsResponse,
    ListRunsRequest,
    ListRunsResponse,
    RunState,
    SelectImagesRequest,
    SelectImagesResponse,
    StreamRunRequest,
    StreamRunResponse,
    WatchRunRequest,
    WatchRunResponse,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceServicer, add_PipelineServiceServicer_to_server

log = logging.getLogger(__name__)

SERVICE = "triptych.v1.PipelineService"
CHUNK_BYTES = 2**20


class PipelineService(PipelineServiceServicer):
    """The RPCs, in terms of the pipeline's methods."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def CreateRun(self, request: CreateRunRequest, context: Context) -> CreateRunResponse:
        run = await self._pipeline.create_run(request.request_id, request.spec, current_caller())
        return CreateRunResponse(run=run)

    async def StreamRun(
        self, request: StreamRunRequest, context: Context
    ) -> AsyncIterator[StreamRunResponse]:
        caller, after_sequence = current_caller(), check_after_sequence(request.after_sequence)
        name = await self._pipeline.begin_run(
            request.request_id,
            request.spec,
            caller,
            detach=request.detach,
            timeout_s=context.time_remaining(),
        )
        self._attach(name, context)
        last = Event()
        async for last in self._pipeline.watch_run(name, caller, after_sequence=after_sequence):
            yield StreamRunResponse(event=last)
        # A caller who had seen the end already is told again what it was.
        has_failed = last.finished.state == RunState.RUN_STATE_FAILED
        is_over = last.HasField("finished") and not has_failed
        if not is_over and (error := await self._pipeline.failure(name, caller)):
            raise error

    async def WatchRun(self, request: WatchRunRequest, context: Context) -> AsyncIterator[WatchRunResponse]:
        name, caller = request.name, current_caller()
        await self._pipeline.check(name, caller)
        self._attach(name, context)
        async for event in self._pipeline.watch_run(name, caller, after_sequence=request.after_sequence):
            yield WatchRunResponse(event=event)

    async def SelectImages(self, request: SelectImagesRequest, context: Context) -> SelectImagesResponse:
        run = await self._pipeline.select_images(
            request.request_id, request.name, request.selections, current_caller()
        )
        return SelectImagesResponse(run=run)

    async def CancelRun(self, request: CancelRunRequest, context: Context) -> CancelRunResponse:
        run = await self._pipeline.cancel_run(request.name, current_caller(), request.images)
        return CancelRunResponse(run=run)

    async def GetRun(self, request: GetRunRequest, context: Context) -> GetRunResponse:
        return GetRunResponse(run=await self._pipeline.get_run(request.name, current_caller()))

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        runs, next_page_token = await self._pipeline.list_runs(
            current_caller(), page_size=request.page_size, page_token=request.page_token
        )
        return ListRunsResponse(runs=runs, next_page_token=next_page_token)

    async def DeleteRun(self, request: DeleteRunRequest, context: Context) -> DeleteRunResponse:
        await self._pipeline.delete_run(request.name, current_caller())
        return DeleteRunResponse()

    async def DownloadImage(
        self, request: DownloadImageRequest, context: Context
    ) -> AsyncIterator[DownloadImageResponse]:
        image, data = await self._pipeline.read_image(request.name, current_caller())
        if not 0 <= request.offset <= len(data):
            raise InvalidRequest("offset", f"must be 0 to {len(data)}, got {request.offset}")
        part = DownloadImageResponse(total_bytes=len(data), sha256=image.sha256, mime_type=image.mime_type)
        for start in range(request.offset, max(len(data), request.offset + 1), CHUNK_BYTES):
            part.chunk = data[start : start + CHUNK_BYTES]
            yield part
            part = DownloadImageResponse()

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        return ListModelsResponse(models=await self._pipeline.list_models())

    def _attach(self, name: str, context: Context) -> None:
        """The caller lives on the run until the call ends."""
        attached = ExitStack()
        attached.enter_context(self._pipeline.attach(name))
        # Unlike a `finally` in a stream, the callback is called at once, also while a slow reader holds that up.
        context.add_done_callback(lambda _: attached.close())  # type: ignore[arg-type]  # typed as something else in the stubs


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


@click.command("gateway")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=50050, show_default=True, help="0: any free one."
)
@click.option(
    "--generator",
    type=TargetType(),
    multiple=True,
    default=["127.0.0.1:50051"],
    show_default=True,
    help="A generator; repeat it for more. dns:NAME:PORT: one at every address of the name.",
)
@click.option(
    "--refiner",
    type=TargetType(),
    multiple=True,
    default=["127.0.0.1:50052"],
    show_default=True,
    help="A refiner, as above.",
)
@click.option(
    "--upscaler",
    type=TargetType(),
    multiple=True,
    default=["127.0.0.1:50053"],
    show_default=True,
    help="An upscaler, as above.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Serve the page, HTTP and server-sent events here, too; 0: any free port.  [default: no HTTP]",
)
@click.option(
    "--http-allowed-host",
    multiple=True,
    help="A name that HTTP may be asked by, such as that of a proxy in front; repeat it for more.",
)
@click.option(
    "--stage-ca",
    type=FILE,
    help="The authority that stages' certificates must come from; without it, no TLS there.",
)
@click.option("--stage-cert", type=FILE, help="The certificate that this gateway shows to the stages.")
@click.option("--stage-key", type=FILE, help="Its key.")
@tls_options
@click.option(
    "--tokens",
    type=FILE,
    help="The file of tokens that `triptych tokens add` makes; without it everybody may call and sees all runs.",
)
@kept_options
@work_options
@click.option(
    "--abandon-grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds after which a run that lives for its caller is cancelled when nobody streams or watches it.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that runs have to finish when the process is asked to stop; the rest goes on at its next start.",
)
@click.option("--exit-with-parent", is_flag=True, help="Stop when standard input ends.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Answer GET /metrics for Prometheus on it; 0: any free one.  [default: no metrics]",
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
    generator: tuple[Target, ...],
    refiner: tuple[Target, ...],
    upscaler: tuple[Target, ...],
    http_port: int | None,
    http_allowed_host: tuple[str, ...],
    tokens: Path | None,
    journal: str,
    store: str,
    keep_days: float | None,
    keep_bytes: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    insecure: bool,
    health_port: int | None,
    stage_ca: Path | None,
    stage_cert: Path | None,
    stage_key: Path | None,
    work: Work,
    abandon_grace: float,
    grace: float,
    exit_with_parent: bool,
    metrics_port: int | None,
    log_level: str,
) -> None:
    """Serve the pipeline over the three stages."""
    start_logging(log_level)
    named = {GENERATE.name: generator, REFINE.name: refiner, UPSCALE.name: upscaler}
    targets = {kind.name: work.targets(kind, named[kind.name]) for kind in STAGES}
    certificate = certificate_of(tls_cert, tls_key, tls_client_ca)
    check_address(
        host, options={"--tls-cert": tls_cert, "--tls-key": tls_key, "--tokens": tokens}, insecure=insecure
    )
    asyncio.run(
        run_gateway(
            targets,
            host=host,
            port=port,
            http_port=http_port,
            http_allowed_hosts=http_allowed_host,
            work=work,
            places=Places(journal, store, keep_from(keep_days, keep_bytes)),
            authentication=Authentication(tokens),
            certificate=certificate,
            health_port=health_port,
            stage_certificates=stage_certificates_of(stage_cert, stage_key, stage_ca),
            abandon_grace_s=abandon_grace,
            grace_s=grace,
            exit_with_parent=exit_with_parent,
            metrics_port=metrics_port,
        )
    )


def stage_certificates_of(cert: Path | None, key: Path | None, ca: Path | None) -> CertificateFiles | None:
    """What the options name; None without an authority. Raises CertificateError when it cannot be used."""
    if ca is None and (cert is not None or key is not None):
        raise click.UsageError("--stage-cert and --stage-key need --stage-ca beside them")
    return CertificateFiles(cert, key, ca) if ca is not None else None


async def run_gateway(
    targets: Mapping[str, tuple[Target, ...]],
    *,
    host: str,
    port: int,
    http_port: int | None,
    http_allowed_hosts: Collection[str],
    work: Work,
    places: Places,
    authentication: Authentication,
    certificate: CertificateFiles | None,
    health_port: int | None,
    stage_certificates: CertificateFiles | None,
    abandon_grace_s: float,
    grace_s: float,
    exit_with_parent: bool,
    metrics_port: int | None,
) -> None:
    """Serves until it is told to stop; runs then have `grace_s` to finish, and what is left goes on at the next start."""
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_signal(with_parent=exit_with_parent))
        pools = {
            kind.name: await stack.enter_async_context(
                Pool(
                    Discovery(
                        kind,
                        targets[kind.name],
                        certificates=stage_certificates,
                        more_targets=functools.partial(work.workers.targets, kind) if work.workers else None,
                    )
                )
            )
            for kind in STAGES
        }
        journal, store = await stack.enter_async_context(kept_at(places))
        bounds = Bounds(room=work.room, abandon_grace_s=abandon_grace_s)
        runs = await stack.enter_async_context(Runs(pools, work.patience, bounds, journal, store).running())
        metrics = GatewayMetrics(pools, runs)
        stack.enter_context(serving_metrics(metrics.registry, host, metrics_port))
        pipeline = Pipeline(pools, runs)
        service = PipelineService(pipeline)
        web = None
        if http_port is not None:
            web = await stack.enter_async_context(
                serving_http(
                    Api(pipeline, authentication),
                    host=host,
                    port=http_port,
                    grace_s=grace_s,
                    hosts=http_allowed_hosts,
                    certificate=certificate,
                )
            )
        running = await stack.enter_async_context(
            serving(
                lambda server: add_PipelineServiceServicer_to_server(service, server),
                services=[SERVICE],
                interceptors=[TokenInterceptor(authentication)],
                certificate=certificate,
                health_port=health_port,
                host=host,
                port=port,
                grace_s=grace_s,
            )
        )
        # Before the server ends its calls, whichever way it comes to that: they must not take their runs along.
        stack.push_async_callback(runs.close)
        await running.set_serving(True)
        log.info("serving on %s", running.address)
        announce("gateway", running.address, **({"http": web.address} if web else {}))
        await stop.wait()
        log.info("stopping; runs have %.0f s to finish", grace_s)
        await running.set_serving(False)
        await runs.close(grace_s)
        if web:
            web.stop()
