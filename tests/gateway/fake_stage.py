"""Stages that follow a script: real gRPC servers of the real protocol, with no network behind them."""

import asyncio
import secrets
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.access.authentication import Authentication
from gateway.grpc_service import SERVICE, PipelineService
from gateway.journal.journal import open_journal
from gateway.pipeline import Pipeline as Facade
from gateway.runs.manager import RunLimits, RunManager
from gateway.stages import GENERATE, REFINE, STAGES, UPSCALE
from gateway.store import open_store
from gateway.webhooks.policy import WebhookPolicy
from gateway.workers.discovery import Discovery
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.targets import Target
from services.images.codec import encode_png
from services.serving.channels import SERVER_OPTIONS
from services.serving.limits.call_gate import CallGate
from services.serving.server import serving
from triptych.client import Client
from triptych.v1 import (
    generator_pb2,
    generator_pb2_grpc,
    refiner_pb2,
    refiner_pb2_grpc,
    upscaler_pb2,
    upscaler_pb2_grpc,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub, add_PipelineServiceServicer_to_server
from triptych.v1.stage_pb2 import ImageData, ModelInfo, PromptReading, StageEvent

# Tests that lose a worker do not wait for it to come back.
IMPATIENT = RetryPolicy(worker_timeout_s=0.0)
NUM_STEPS = 3
SIDE_PX = 8


def png(seed: int, side: int = SIDE_PX) -> bytes:
    """A picture of one colour that its seed decides."""
    colour = np.frombuffer(zlib.crc32(seed.to_bytes(8, "big")).to_bytes(4, "big")[:3], np.uint8)
    return encode_png(np.broadcast_to(colour, (side, side, 3)).copy())


def image(seed: int, side: int = SIDE_PX) -> ImageData:
    return ImageData(mime_type="image/png", data=png(seed, side), width=side, height=side)


# As models report them: a gateway has no ranges of its own.
RANGES = {
    GENERATE: {
        "temperature": ModelInfo.Range(lowest=0.01, highest=100),
        "top_k": ModelInfo.Range(lowest=0, highest=1_000_000),
        "top_p": ModelInfo.Range(lowest=0, highest=1, excludes_lowest=True),
        "guidance_scale": ModelInfo.Range(lowest=0, highest=100),
    },
    REFINE: {
        "num_steps": ModelInfo.Range(lowest=1, highest=1_000),
        "skip_ratio": ModelInfo.Range(lowest=0, highest=1, excludes_highest=True),
        "guidance_scale": ModelInfo.Range(lowest=0, highest=100),
    },
    UPSCALE: dict.fromkeys(("tile_size", "tile_overlap"), ModelInfo.Range(lowest=0, highest=4_096)),
}
PREVIEWS = {"preview_every": ModelInfo.Range(lowest=0, highest=1_000_000)}


class ScriptedStage:
    """What all three have in common: they note what is asked of them, and do as the test has set."""

    def __init__(self, *, model: str = "scripted", digest: str = "d1") -> None:
        ranges = {**RANGES[self.stage], **PREVIEWS}
        self.info = ModelInfo(name=model, digest=digest, stage=self.stage.number, ranges=ranges)
        self.requests: list = []
        self.finished: list[int] = []
        self.cancelled: list[int] = []
        # Pictures wait for their gate after the first step; open unless the test closes it.
        self.gates: dict[int, asyncio.Event] = defaultdict(_open)
        # Set for an index when its call begins, and when it ends, whichever way.
        self.begun: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.stopped: dict[int, asyncio.Event] = defaultdict(asyncio.Event)
        # A failure of one picture, an error of its call, or events in place of the usual ones, by index.
        self.failures: dict[int, StageEvent.ImageFailure] = {}
        self.errors: dict[int, Exception] = {}
        self.garbage: dict[int, list[StageEvent]] = {}
        self.num_previews = 1
        self.preview_bytes = 0
        self.picture_bytes = 0
        self.queue_position = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(interceptors=[CallGate()], options=SERVER_OPTIONS)
        self.add_to_server(self._server)
        self.checks = health.aio.HealthServicer()
        await self.checks.set(self.stage.service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self.checks, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        await self._server.start()

    async def kill(self) -> None:
        """Ends the process, as far as anybody can see: its calls break off and its port is closed."""
        await self._server.stop(None)

    def close_gates(self, *indexes: int) -> None:
        for index in indexes:
            self.gates[index].clear()

    async def events(self, index: int, seed: int) -> AsyncIterator[StageEvent]:
        self.begun[index].set()
        is_whole = False
        try:
            async for event in self._script(index, seed):
                yield event
            is_whole = True
        finally:
            # A call that is cancelled while it sends is closed without a status.
            (self.finished if is_whole else self.cancelled).append(index)
            self.stopped[index].set()

    async def _script(self, index: int, seed: int) -> AsyncIterator[StageEvent]:
        if index in self.errors:
            raise self.errors[index]
        if index in self.garbage:
            for event in self.garbage[index]:
                yield event
            return
        if self.queue_position:
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=self.queue_position, num_images=1))
        yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
        yield StageEvent(progress=StageEvent.Progress(index=index, step=1, num_steps=NUM_STEPS))
        for _ in range(self.num_previews):
            shown = image(seed)
            shown.data += bytes(self.preview_bytes)
            preview = StageEvent.Preview(index=index, step=1, num_steps=NUM_STEPS, image=shown)
            yield StageEvent(preview=preview)
        await self.gates[index].wait()
        if index in self.failures:
            yield StageEvent(failure=self.failures[index])
            return
        picture = image(seed, self.side)
        picture.data += bytes(self.picture_bytes)
        yield StageEvent(image=StageEvent.FinishedImage(index=index, image=picture, seed=seed))
        timing = StageEvent.Timing(index=index)
        timing.compute.FromMilliseconds(1)
        yield StageEvent(timing=timing)

    side = SIDE_PX


class ScriptedGenerator(ScriptedStage, generator_pb2_grpc.GeneratorServiceServicer):
    stage = GENERATE

    def __init__(self, **more) -> None:
        super().__init__(**more)
        # What it makes of a prompt, where that is not the prompt itself; it is asked once it lists a vocabulary.
        self.readings: dict[str, PromptReading] = {}

    def add_to_server(self, server: grpc.aio.Server) -> None:
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server(self, server)

    async def GetModel(self, request, context):
        return generator_pb2.GeneratorServiceGetModelResponse(model=self.info)

    async def ReadPrompt(self, request, context):
        reading = self.readings.get(request.prompt, PromptReading(prompt=request.prompt))
        return generator_pb2.GeneratorServiceReadPromptResponse(reading=reading)

    async def Generate(self, request, context):
        self.requests.append(request)
        async for event in self.events(request.images[0].index, request.images[0].seed):
            yield generator_pb2.GenerateResponse(event=event)


class ScriptedRefiner(ScriptedStage, refiner_pb2_grpc.RefinerServiceServicer):
    stage = REFINE

    def __init__(self, **more) -> None:
        super().__init__(**more)
        self.rank_requests: list = []
        self.rank_error: Exception | None = None
        self.rank_answer: list[float] | None = None
        # Score of the picture that was made with this seed; 0 for others.
        self.scores: dict[int, float] = {}

    def add_to_server(self, server: grpc.aio.Server) -> None:
        refiner_pb2_grpc.add_RefinerServiceServicer_to_server(self, server)

    async def GetModel(self, request, context):
        return refiner_pb2.RefinerServiceGetModelResponse(model=self.info)

    async def Refine(self, request, context):
        self.requests.append(request)
        async for event in self.events(request.images[0].index, request.images[0].seed):
            yield refiner_pb2.RefineResponse(event=event)

    async def Rank(self, request, context):
        self.rank_requests.append(request)
        if self.rank_error is not None:
            raise self.rank_error
        if self.rank_answer is not None:
            return refiner_pb2.RankResponse(scores=self.rank_answer)
        by_picture = {png(seed): score for seed, score in self.scores.items()}
        return refiner_pb2.RankResponse(scores=[by_picture.get(one.data, 0.0) for one in request.images])


class ScriptedUpscaler(ScriptedStage, upscaler_pb2_grpc.UpscalerServiceServicer):
    stage = UPSCALE
    side = 4 * SIDE_PX

    def add_to_server(self, server: grpc.aio.Server) -> None:
        upscaler_pb2_grpc.add_UpscalerServiceServicer_to_server(self, server)

    async def GetModel(self, request, context):
        return upscaler_pb2.UpscalerServiceGetModelResponse(model=self.info)

    async def Upscale(self, request, context):
        self.requests.append(request)
        async for event in self.events(request.images[0].index, 0):
            yield upscaler_pb2.UpscaleResponse(event=event)


@dataclass
class Pipeline:
    """A gateway over scripted stages, and two ways to call it."""

    address: str
    stub: PipelineServiceStub
    client: Client
    facade: Facade
    runs: RunManager
    pools: dict[str, Pool]
    generators: Sequence[ScriptedGenerator]
    refiners: Sequence[ScriptedRefiner]
    upscalers: Sequence[ScriptedUpscaler]

    async def notice(self) -> None:
        """Has the gateway ask after its workers now, after a test has changed what they say."""
        for pool in self.pools.values():
            await pool.refresh()

    @property
    def generator(self) -> ScriptedGenerator:
        return self.generators[0]

    @property
    def refiner(self) -> ScriptedRefiner:
        return self.refiners[0]

    @property
    def upscaler(self) -> ScriptedUpscaler:
        return self.upscalers[0]


@dataclass
class Stages:
    """Workers of each stage, on ports of their own."""

    generators: Sequence[ScriptedGenerator]
    refiners: Sequence[ScriptedRefiner]
    upscalers: Sequence[ScriptedUpscaler]


def discovery_of(*workers: ScriptedStage, **more: object) -> Discovery:
    """Of these workers at their addresses; it asks after them again only where a test has it ask."""
    return Discovery(
        GENERATE, [Target("127.0.0.1", one.port) for one in workers], check_every_s=3600.0, **more
    )


@asynccontextmanager
async def scripted_stages(
    *,
    generators: int = 1,
    refiners: int = 1,
    upscalers: int = 1,
    generator: type[ScriptedGenerator] = ScriptedGenerator,
) -> AsyncIterator[Stages]:
    """So many workers of each stage."""
    async with AsyncExitStack() as stack:
        stages = Stages(
            [generator() for _ in range(generators)],
            [ScriptedRefiner() for _ in range(refiners)],
            [ScriptedUpscaler() for _ in range(upscalers)],
        )
        for worker in (*stages.generators, *stages.refiners, *stages.upscalers):
            await worker.start()
            stack.push_async_callback(worker.kill)
        yield stages


@asynccontextmanager
async def gateway_over(
    stages: Stages,
    folder: Path,
    *,
    journal: str = "",
    store: str = "",
    retry_policy: RetryPolicy = IMPATIENT,
    bounds: RunLimits = RunLimits(abandon_grace_s=0),  # noqa: B008 - frozen
    tokens: Path | None = None,
    webhooks: WebhookPolicy = WebhookPolicy(),  # noqa: B008 - frozen
) -> AsyncIterator[Pipeline]:
    """A gateway that keeps its journal and pictures in that folder, unless another journal or store is named."""
    async with AsyncExitStack() as stack:
        pools = {}
        for stage, workers in zip(
            STAGES, (stages.generators, stages.refiners, stages.upscalers), strict=True
        ):
            targets = [Target("127.0.0.1", worker.port) for worker in workers]
            pools[stage.name] = await stack.enter_async_context(Pool(Discovery(stage, targets)))
            await pools[stage.name].refresh()
        pictures = open_store(store or str(folder / "pictures"))
        stack.push_async_callback(pictures.close)
        kept = await stack.enter_async_context(
            open_journal(journal or str(folder / "journal.db"), secrets.token_hex(4))
        )
        runs = await stack.enter_async_context(
            RunManager(pools, retry_policy, bounds, kept, pictures).running()
        )
        facade = Facade(pools, runs, webhooks)
        service = PipelineService(facade)
        running = await stack.enter_async_context(
            serving(
                lambda server: add_PipelineServiceServicer_to_server(service, server),
                services=[SERVICE],
                authenticate=Authentication(tokens).enter,
                grace_s=5,
            )
        )
        await running.set_serving(True)
        client = await stack.enter_async_context(Client(running.address))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(running.address))
        # As in the gateway's process: it is the first to know that it stops, before its callers are cut off.
        stack.push_async_callback(runs.close)
        yield Pipeline(
            running.address,
            PipelineServiceStub(channel),
            client,
            facade,
            runs,
            pools,
            stages.generators,
            stages.refiners,
            stages.upscalers,
        )


@asynccontextmanager
async def pipeline(
    *,
    generators: int = 1,
    refiners: int = 1,
    upscalers: int = 1,
    retry_policy: RetryPolicy = IMPATIENT,
    bounds: RunLimits = RunLimits(abandon_grace_s=0),  # noqa: B008 - frozen
    tokens: Path | None = None,
    generator: type[ScriptedGenerator] = ScriptedGenerator,
) -> AsyncIterator[Pipeline]:
    """A gateway over so many workers of each stage; nothing of it is left."""
    workers = scripted_stages(
        generators=generators, refiners=refiners, upscalers=upscalers, generator=generator
    )
    with TemporaryDirectory() as folder:
        async with (
            workers as stages,
            gateway_over(
                stages, Path(folder), retry_policy=retry_policy, bounds=bounds, tokens=tokens
            ) as gateway,
        ):
            yield gateway


def _open() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
