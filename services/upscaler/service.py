"""The upscaler as a gRPC service: checks what a caller sends, and makes each picture a job of the engine.

It knows the protocol and the stepper; how the process starts and stops is services/serving/stage_service.py's.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import click
import torch

from services.engine.stepper import JobRequest
from services.errors import InvalidRequest
from services.images.codec import MAX_PIXELS, ImageLimits, decode_with_alpha
from services.pytorch.choices import service_choices
from services.pytorch.device import DTYPE_NAMES, check_memory, find_device, name_of, oom_as_model_error
from services.serving.channels import MAX_STAGE_IMAGE_BYTES
from services.serving.limits.call_gate import Context
from services.serving.limits.request_checks import check_count, check_indexes, read_setting
from services.serving.stage_command import run_stage, stage_options
from services.serving.stage_service import MAX_IMAGES, ServeOptions, StageService, model_info
from services.upscaler.model import load_swinir, place
from services.upscaler.stepper import UpscaleJob, UpscalerStepper
from services.upscaler.tiling import DEFAULT_TILE_OVERLAP, DEFAULT_TILE_SIZE
from services.weights.cache import open_model
from services.weights.catalog import model_size
from triptych.v1.stage_pb2 import STAGE_UPSCALE, ModelInfo
from triptych.v1.upscaler_pb2 import (
    UpscaleRequest,
    UpscaleResponse,
    UpscalerServiceGetModelRequest,
    UpscalerServiceGetModelResponse,
)
from triptych.v1.upscaler_pb2_grpc import UpscalerServiceServicer, add_UpscalerServiceServicer_to_server

SERVICE_NAME = "triptych.v1.UpscalerService"


DEFAULTS = {"tile_size": DEFAULT_TILE_SIZE, "tile_overlap": DEFAULT_TILE_OVERLAP}


@dataclass(frozen=True)
class LoadedUpscaler:
    stepper: UpscalerStepper
    info: ModelInfo


class UpscalerService(StageService[LoadedUpscaler, UpscaleJob], UpscalerServiceServicer):
    async def Upscale(self, request: UpscaleRequest, context: Context) -> AsyncIterator[UpscaleResponse]:
        tickets, caller = await self.decode(read_request, request, self.loaded), request.caller
        # Its files are decoded; the call may wait for minutes.
        del request
        async for event in self.stream(tickets, seeds={}, caller=caller, context=context):
            yield UpscaleResponse(event=event)

    async def GetModel(
        self, request: UpscalerServiceGetModelRequest, context: Context
    ) -> UpscalerServiceGetModelResponse:
        return UpscalerServiceGetModelResponse(model=self.loaded.info)


def read_request(request: UpscaleRequest, loaded: LoadedUpscaler) -> list[JobRequest[UpscaleJob]]:
    """Decodes and checks every picture, so that nothing is queued of a request that cannot be served whole.

    Raises InvalidRequest naming the field.
    """
    settings, stepper, info = request.settings, loaded.stepper, loaded.info
    tile_size = int(read_setting(settings, "tile_size", info))
    # An overlap that was not asked for fits any tile that was.
    default_overlap = min(DEFAULT_TILE_OVERLAP, tile_size // 2) if tile_size else 0
    tile_overlap = int(read_setting(settings, "tile_overlap", info, default=default_overlap))
    preview_every = int(read_setting(settings, "preview_every", info))
    check_count(len(request.images), MAX_IMAGES, "images")
    check_indexes([one.index for one in request.images], "images")
    limits = image_limits(stepper)
    tickets = []
    for position, one in enumerate(request.images):
        picture = decode_with_alpha(one.image.data, limits, f"images[{position}].image")
        job = UpscaleJob(picture, tile_size, tile_overlap)
        try:
            stepper.check(job)
        except InvalidRequest as error:
            # The pixels were checked as the picture was decoded: it is the tiling.
            raise InvalidRequest(f"settings.{error.field}", error.description) from None
        tickets.append(JobRequest(one.index, job, preview_every))
    return tickets


def ranges(stepper: UpscalerStepper) -> dict[str, ModelInfo.Range]:
    return dict.fromkeys(DEFAULTS, ModelInfo.Range(lowest=0, highest=stepper.max_tile_size))


def image_limits(stepper: UpscalerStepper) -> ImageLimits:
    return ImageLimits(max_bytes=MAX_STAGE_IMAGE_BYTES, max_pixels=stepper.max_pixels)


def load(options: ServeOptions, dtype: str) -> LoadedUpscaler:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder, manifest = open_model(options.model, "upscaler")
    check_memory(
        f"the upscaler '{manifest.name}'", model_size(folder, manifest), options.slots, options.device, dtype
    )
    device = find_device(options.device)
    with oom_as_model_error(manifest.name):
        network = place(load_swinir(folder / "swinir"), device, dtype, service_choices(device))
    upscale = network.config.upscale
    stepper = UpscalerStepper(network, num_slots=options.slots, max_pixels=MAX_PIXELS)
    info = model_info(
        manifest,
        STAGE_UPSCALE,
        options,
        scale=upscale,
        device=str(device),
        dtype=name_of(network.conv_first.weight.dtype),
        limits=ModelInfo.Limits(
            max_image_bytes=MAX_STAGE_IMAGE_BYTES,
            max_image_pixels=stepper.max_pixels,
            max_num_steps=0,
            max_tile_size=stepper.max_tile_size,
            tile_multiple=network.config.window_size,
        ),
        defaults=DEFAULTS,
        ranges=ranges(stepper),
    )
    return LoadedUpscaler(stepper, info)


@click.command()
@stage_options("upscaler", slots=2)
@click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    default="auto",
    show_default=True,
    envvar="TRIPTYCH_DTYPE",
    help="Of matrix products and convolutions; norms and the residual stream are float32. auto: float32 on a CPU, else "
    "bfloat16, or float16 on a GPU without it.",
)
def serve(options: ServeOptions, dtype: str) -> None:
    """Enlarge pictures (SwinIR)."""
    run_stage(
        UpscalerService(),
        add_UpscalerServiceServicer_to_server,
        lambda: load(options, dtype),
        service_name=SERVICE_NAME,
        options=options,
    )
