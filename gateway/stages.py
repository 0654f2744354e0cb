"""The stages as the gateway calls them: the stub of each, and one image's job as its request.

Names, ports and what a stage makes are in `triptych/stages.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from gateway.spool import Spool
from services.serving.limits.call_gate import IMAGE_METADATA
from triptych import stages
from triptych.stages import StageInfo
from triptych.v1.generator_pb2 import GenerateRequest, GeneratorServiceGetModelRequest
from triptych.v1.generator_pb2_grpc import GeneratorServiceStub
from triptych.v1.refiner_pb2 import RefineRequest, RefinerServiceGetModelRequest
from triptych.v1.refiner_pb2_grpc import RefinerServiceStub
from triptych.v1.stage_pb2 import (
    ImageData,
    ImageItem,
    ImagePrompt,
    Stage as ProtoStage,
    StageEvent,
    TextDifference,
)
from triptych.v1.upscaler_pb2 import UpscaleRequest, UpscalerServiceGetModelRequest
from triptych.v1.upscaler_pb2_grpc import UpscalerServiceStub


@dataclass(frozen=True)
class Job:
    """One picture to be made. `image` is what it is made from, or None."""

    index: int
    seed: int
    prompt: str
    # GenerateSettings, RefineSettings or UpscaleSettings, as the stage has them.
    settings: Any
    # The base seed of the run, from which what its pictures share is drawn.
    run_seed: int
    caller: str
    # Of the image, for the logs of all processes.
    name: str = ""
    image: ImageData | None = None
    # Which part of it to repaint; None: all.
    mask: ImageData | None = None
    # Where a file goes that is too large for one message.
    spool: Spool = field(default_factory=Spool)
    image_prompts: tuple[ImagePrompt, ...] = ()
    text_difference: TextDifference | None = None


@dataclass(frozen=True, kw_only=True)
class Stage(StageInfo):
    """A stage as the gateway calls it."""

    number: ProtoStage.ValueType
    make_stub: Callable[[grpc.aio.Channel], Any]
    request: Callable[[Job], Any]
    get_model_request: Callable[[], Any]

    @property
    def method(self) -> str:
        return self.name.capitalize()

    def start(
        self, channel: grpc.aio.Channel, job: Job, timeout_s: float, traceparent: str = ""
    ) -> "StageStream":
        """Begins the work on one picture; gRPC gives a call no deadline by itself."""
        metadata = [("traceparent", traceparent)] if traceparent else []
        if job.name:
            metadata.append((IMAGE_METADATA, job.name))
        call = getattr(self.make_stub(channel), self.method)(
            self.request(job), timeout=timeout_s, metadata=metadata
        )
        return StageStream(call)


class StageStream:
    """The events of one call to a stage."""

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
        self._call = call

    async def read(self) -> StageEvent | None:
        """The next event; None at the end. Raises AioRpcError."""
        response: Any = await self._call.read()
        return None if response is grpc.aio.EOF else response.event

    def cancel(self) -> None:
        self._call.cancel()


def _generate(job: Job) -> GenerateRequest:
    return GenerateRequest(
        prompt=job.prompt,
        images=[_item(job)],
        settings=job.settings,
        caller=job.caller,
        image_prompts=job.image_prompts,
        text_difference=job.text_difference,
    )


def _refine(job: Job) -> RefineRequest:
    # The latent of the init image comes from the run's seed, so all variations of a picture share it, as GLID-3-xl
    # has it, though each is a call of its own.
    return RefineRequest(
        prompt=job.prompt,
        images=[_item(job)],
        settings=job.settings,
        init_image=job.image,
        mask=job.mask,
        init_seed=job.run_seed,
        caller=job.caller,
    )


def _upscale(job: Job) -> UpscaleRequest:
    return UpscaleRequest(
        images=[UpscaleRequest.Input(index=job.index, image=job.image)],
        settings=job.settings,
        caller=job.caller,
    )


def _item(job: Job) -> ImageItem:
    return ImageItem(index=job.index, seed=job.seed)


_INFO = {info.name: info for info in stages.STAGES}
GENERATE = Stage(
    **vars(_INFO["generate"]),
    make_stub=GeneratorServiceStub,
    request=_generate,
    get_model_request=GeneratorServiceGetModelRequest,
)
REFINE = Stage(
    **vars(_INFO["refine"]),
    make_stub=RefinerServiceStub,
    request=_refine,
    get_model_request=RefinerServiceGetModelRequest,
)
UPSCALE = Stage(
    **vars(_INFO["upscale"]),
    make_stub=UpscalerServiceStub,
    request=_upscale,
    get_model_request=UpscalerServiceGetModelRequest,
)
STAGES = (GENERATE, REFINE, UPSCALE)


def stage_of(stage: ProtoStage.ValueType) -> Stage:
    return STAGES[stage - 1]
