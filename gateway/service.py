"""PipelineService, the gateway's public face, and the command that serves it.

It translates between calls and runs; what a run does is in flow.py. It imports neither jax nor torch.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack

import click

from gateway.attempts import Patience
from gateway.plan import MAX_REQUEST_ID_CHARS, NotBuilt, make_plan
from gateway.pool import Pool, Target, models_of, parse_target
from gateway.record import MAX_INLINE_BYTES
from gateway.runs import Bounds, Run, Runs
from gateway.stages import GENERATE, REFINE, STAGES, UPSCALE
from services.errors import InvalidRequest, NotFound
from services.server import Context, announce, serving, stop_signal
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
    RunSpec,
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
    """The RPCs of this version; those of later ones say what there is instead."""

    def __init__(self, pools: Mapping[str, Pool], runs: Runs) -> None:
        self._pools = pools
        self._runs = runs

    async def CreateRun(self, request: CreateRunRequest, context: Context) -> CreateRunResponse:
        run = await self._begin(request.request_id, request.spec, context, is_detached=True)
        return CreateRunResponse(run=run.record.to_proto())

    async def StreamRun(
        self, request: StreamRunRequest, context: Context
    ) -> AsyncIterator[StreamRunResponse]:
        if request.after_sequence < 0:
            raise InvalidRequest("after_sequence", f"must not be negative, got {request.after_sequence}")
        run = await self._begin(request.request_id, request.spec, context, is_detached=request.detach)
        run.attach()
        # Unlike a `finally` here, the callback is called at once, also while a slow reader holds this generator up.
        context.add_done_callback(lambda _: run.detach())  # type: ignore[arg-type]  # typed as something else in the stubs
        async for event in self._events(run, after_sequence=request.after_sequence):
            yield StreamRunResponse(event=event)
        if run.error is not None and run.record.run.state == RunState.RUN_STATE_FAILED:
            raise run.error

    async def WatchRun(self, request: WatchRunRequest, context: Context) -> AsyncIterator[WatchRunResponse]:
        run = self._runs.get(request.name)
        if request.after_sequence < 0:
            raise InvalidRequest("after_sequence", f"must not be negative, got {request.after_sequence}")
        async for event in self._events(run, after_sequence=request.after_sequence):
            yield WatchRunResponse(event=event)

    async def CancelRun(self, request: CancelRunRequest, context: Context) -> CancelRunResponse:
        run = self._runs.get(request.name)
        await run.cancel(request.images)
        return CancelRunResponse(run=run.record.to_proto())

    async def GetRun(self, request: GetRunRequest, context: Context) -> GetRunResponse:
        return GetRunResponse(run=self._runs.get(request.name).record.to_proto())

    async def DownloadImage(
        self, request: DownloadImageRequest, context: Context
    ) -> AsyncIterator[DownloadImageResponse]:
        record = self._runs.get(request.name.partition("/images/")[0]).record
        image = record.find_image(request.name)
        if image is None:
            raise NotFound(f"{record.name} has no finished image {request.name[:120]!r}")
        data = record.files[image.name]
        if not 0 <= request.offset <= len(data):
            raise InvalidRequest("offset", f"must be 0 to {len(data)}, got {request.offset}")
        part = DownloadImageResponse(total_bytes=len(data), sha256=image.sha256, mime_type=image.mime_type)
        for start in range(request.offset, max(len(data), request.offset + 1), CHUNK_BYTES):
            part.chunk = data[start : start + CHUNK_BYTES]
            yield part
            part = DownloadImageResponse()

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        pools = [self._pools[kind.name] for kind in STAGES]
        await asyncio.gather(*(pool.refresh() for pool in pools if not pool.healthy))
        return ListModelsResponse(
            models=[
                ListModelsResponse.StageModel(model=model, num_workers=num_workers)
                for pool in pools
                for model, num_workers in models_of(pool.healthy)
            ]
        )

    async def SelectImages(self, request: SelectImagesRequest, context: Context) -> SelectImagesResponse:
        raise NotBuilt("choosing by hand is not served yet; begin a run with the image in spec.init_images")

    async def ListRuns(self, request: ListRunsRequest, context: Context) -> ListRunsResponse:
        raise NotBuilt("runs are not listed yet; GetRun gives the run of a name")

    async def DeleteRun(self, request: DeleteRunRequest, context: Context) -> DeleteRunResponse:
        raise NotBuilt(
            "runs are not deleted by hand yet; the oldest finished ones are forgotten by themselves"
        )

    async def _begin(self, request_id: str, spec: RunSpec, context: Context, *, is_detached: bool) -> Run:
        if len(request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidRequest(
                "request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters, got {len(request_id)}"
            )
        run = self._runs.find(request_id, spec)
        if run is None:
            run = self._runs.begin(
                request_id,
                spec,
                await make_plan(spec, self._pools),
                caller=_host(context.peer()),
                is_detached=is_detached,
                timeout_s=None if is_detached else context.time_remaining(),
            )
        run.is_detached = run.is_detached or is_detached
        return run

    async def _events(self, run: Run, *, after_sequence: int) -> AsyncIterator[Event]:
        """The events of a run as they leave here: finished pictures with their files, where a message can hold them."""
        async for event in run.record.log.follow(after_sequence):
            if event.HasField("image_ready"):
                data = run.record.files[event.image_ready.image.name]
                if len(data) <= MAX_INLINE_BYTES:
                    told = Event()
                    told.CopyFrom(event)
                    told.image_ready.image.data = data
                    yield told
                    continue
            yield event


def _host(peer: str) -> str:
    """ "ipv4:10.0.0.7:53122" -> "ipv4:10.0.0.7": who is served in turns with others."""
    return peer.rpartition(":")[0] or peer


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
    "--max-runs",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Runs under way at once; further ones are refused with QUEUE_FULL.",
)
@click.option(
    "--stall-timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds of silence after which a worker that makes a picture is taken for lost.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running calls have when the process is asked to stop.",
)
@click.option("--exit-with-parent", is_flag=True, help="Stop when standard input ends.")
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
    max_runs: int,
    stall_timeout: float,
    grace: float,
    exit_with_parent: bool,
    log_level: str,
) -> None:
    """Serve the pipeline over the three stages."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    targets = {GENERATE.name: generator, REFINE.name: refiner, UPSCALE.name: upscaler}
    asyncio.run(
        run_gateway(
            targets,
            host=host,
            port=port,
            patience=Patience(stall_timeout_s=stall_timeout),
            bounds=Bounds(max_running=max_runs),
            grace_s=grace,
            exit_with_parent=exit_with_parent,
        )
    )


async def run_gateway(
    targets: Mapping[str, tuple[Target, ...]],
    *,
    host: str,
    port: int,
    patience: Patience,
    bounds: Bounds,
    grace_s: float,
    exit_with_parent: bool,
) -> None:
    """Serves until it is told to stop; running calls then have `grace_s`, and what still runs is cancelled."""
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_signal(with_parent=exit_with_parent))
        pools = {
            kind.name: await stack.enter_async_context(Pool(kind, targets[kind.name])) for kind in STAGES
        }
        runs = Runs(pools, patience, bounds)
        stack.push_async_callback(runs.close)
        service = PipelineService(pools, runs)
        running = await stack.enter_async_context(
            serving(
                lambda server: add_PipelineServiceServicer_to_server(service, server),
                services=[SERVICE],
                host=host,
                port=port,
                grace_s=grace_s,
            )
        )
        await running.set_serving(True)
        log.info("serving on %s", running.address)
        announce("gateway", running.address)
        await stop.wait()
        log.info("stopping; running calls have %.0f s", grace_s)
