"""The refiner as a gRPC service: checks what a caller sends, makes each variation a job of the engine, ranks pictures.

It knows the protocol and the stepper; how the process starts and stops is services/serving/stage_service.py's.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import click
import torch

from services.engine.stepper import JobRequest
from services.errors import InvalidRequest
from services.images.codec import ImageLimits, Picture, decode_image
from services.images.fit import Fit, fit_mask, fit_picture
from services.images.masks import Mask, decode_mask
from services.pytorch.choices import service_choices
from services.pytorch.device import DTYPE_NAMES, check_memory, find_device, name_of, oom_as_model_error
from services.refiner.clip_scores import crop_for_clip, rank
from services.refiner.model import RefinerModel, load_model
from services.refiner.networks.diffusion import MIN_STEPS, NUM_TRAIN_TIMESTEPS
from services.refiner.stepper import RefineJob, RefinerStepper
from services.serving.channels import MAX_STAGE_IMAGE_BYTES
from services.serving.limits.call_gate import Context
from services.serving.limits.request_checks import (
    PROMPT_TRUNCATED,
    PromptLength,
    check_count,
    check_fit,
    check_items,
    check_prompt,
    check_steps_left,
    read_setting,
)
from services.serving.stage_command import run_stage, stage_options
from services.serving.stage_service import (
    MAX_IMAGES,
    MAX_PROMPT_BYTES,
    ServeOptions,
    StageService,
    model_info,
)
from services.weights.cache import open_model
from services.weights.catalog import model_size
from triptych.v1.refiner_pb2 import (
    RankRequest,
    RankResponse,
    RefineRequest,
    RefineResponse,
    RefinerServiceGetModelRequest,
    RefinerServiceGetModelResponse,
)
from triptych.v1.refiner_pb2_grpc import RefinerServiceServicer, add_RefinerServiceServicer_to_server
from triptych.v1.stage_pb2 import (
    FIT_CROP,
    FIT_PAD,
    FIT_UNSPECIFIED,
    INPAINTING_BLENDED,
    INPAINTING_TRAINED,
    STAGE_REFINE,
    ModelInfo,
)

SERVICE_NAME = "triptych.v1.RefinerService"
IMAGE_LIMITS = ImageLimits(max_bytes=MAX_STAGE_IMAGE_BYTES)
FITS: Mapping[int, Fit] = {FIT_UNSPECIFIED: "crop", FIT_CROP: "crop", FIT_PAD: "pad"}
# Of num_steps, the lowest must be left by skip_ratio.
RANGES = {
    "num_steps": ModelInfo.Range(lowest=MIN_STEPS, highest=NUM_TRAIN_TIMESTEPS),
    "skip_ratio": ModelInfo.Range(lowest=0, highest=1, excludes_highest=True),
    "guidance_scale": ModelInfo.Range(lowest=0, highest=100),
}


@dataclass(frozen=True)
class LoadedRefiner:
    stepper: RefinerStepper
    info: ModelInfo
    model: RefinerModel


class RefinerService(StageService[LoadedRefiner, RefineJob], RefinerServiceServicer):
    async def Refine(self, request: RefineRequest, context: Context) -> AsyncIterator[RefineResponse]:
        tickets = await self.decode(read_request, request, self.loaded.info)
        warnings = prompt_warnings(request, self.loaded.model)
        tickets = [replace(ticket, warnings={**ticket.warnings, **warnings}) for ticket in tickets]
        seeds, caller = {item.index: item.seed for item in request.images}, request.caller
        # Its files are decoded; the call may wait for minutes.
        del request
        async for event in self.stream(tickets, seeds=seeds, caller=caller, context=context):
            yield RefineResponse(event=event)

    async def Rank(self, request: RankRequest, context: Context) -> RankResponse:
        model = self.loaded.model
        prompt, pictures = await self.decode(read_rank_request, request, model.clip.config.image_size)
        del request
        return RankResponse(scores=await self.engine.run_between_steps(lambda: rank(model, prompt, pictures)))

    async def GetModel(
        self, request: RefinerServiceGetModelRequest, context: Context
    ) -> RefinerServiceGetModelResponse:
        return RefinerServiceGetModelResponse(model=self.loaded.info)


def read_request(request: RefineRequest, info: ModelInfo) -> list[JobRequest[RefineJob]]:
    """Checks the whole request and decodes its picture; raises InvalidRequest naming the field."""
    settings = request.settings
    check_items(request.images, info.limits)
    prompt = check_prompt(request.prompt, MAX_PROMPT_BYTES)
    if settings.negative_prompt.strip():
        check_prompt(settings.negative_prompt, MAX_PROMPT_BYTES, "settings.negative_prompt")
    num_steps = int(read_setting(settings, "num_steps", info))
    skip_ratio = read_setting(settings, "skip_ratio", info, default=0 if request.HasField("mask") else None)
    guidance_scale = read_setting(settings, "guidance_scale", info)
    preview_every = int(read_setting(settings, "preview_every", info))
    if request.HasField("init_image"):
        check_steps_left(num_steps, skip_ratio, MIN_STEPS, "settings.skip_ratio")
    init_image, mask = _read_init_image(request, info.image_size)
    jobs = [
        RefineJob(
            prompt=prompt,
            init_image=init_image,
            seed=item.seed,
            init_seed=request.init_seed,
            negative_prompt=settings.negative_prompt,
            num_steps=num_steps,
            skip_ratio=skip_ratio,
            guidance_scale=guidance_scale,
            mask=mask,
        )
        for item in request.images
    ]
    return [
        JobRequest(item.index, job, preview_every) for item, job in zip(request.images, jobs, strict=True)
    ]


def prompt_warnings(request: RefineRequest, model: RefinerModel) -> dict[str, str]:
    """What of the texts is not read, since they are longer than the model's context, by its reason."""
    tokenizer = model.text_tokenizer
    texts = {"prompt": request.prompt, "negative_prompt": request.settings.negative_prompt}
    found = [
        message
        for field, text in texts.items()
        for message in PromptLength(tokenizer.count(text), tokenizer.num_tokens)
        .warnings("refiner", field)
        .values()
    ]
    return {PROMPT_TRUNCATED: "; ".join(found)} if found else {}


def _read_init_image(request: RefineRequest, side_px: int) -> tuple[Picture | None, Mask | None]:
    """The init image and its mask at the model's size, so that nothing larger waits in the queue."""
    if not request.HasField("init_image"):
        if request.HasField("mask"):
            raise InvalidRequest("mask", "needs a picture to repaint a part of: send an init_image, too")
        return None, None
    check_fit(request.settings.fit, "settings.fit")
    how = FITS[request.settings.fit]
    picture = decode_image(request.init_image.data, IMAGE_LIMITS, "init_image")
    init_image = fit_picture(picture, side_px, side_px, how)
    if not request.HasField("mask"):
        return init_image, None
    height, width = picture.shape[:2]
    mask = fit_mask(decode_mask(request.mask.data, "mask", width=width, height=height), side_px, side_px, how)
    if not mask.any():
        raise InvalidRequest(
            "mask", "lies outside the middle square that is kept of the picture; set settings.fit to FIT_PAD"
        )
    return init_image, mask


def read_rank_request(request: RankRequest, size: int) -> tuple[str, list[Picture]]:
    """The prompt and the pictures as CLIP takes them, `size` pixels square; raises InvalidRequest naming the field.

    Each is decoded and cut before the next one: all of them at their own size would take hundreds of megabytes.
    """
    prompt = check_prompt(request.prompt, MAX_PROMPT_BYTES)
    check_count(len(request.images), MAX_IMAGES, "images")
    return prompt, [
        crop_for_clip(decode_image(image.data, IMAGE_LIMITS, f"images[{i}]"), size)
        for i, image in enumerate(request.images)
    ]


def load(options: ServeOptions, dtype: str) -> LoadedRefiner:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder, manifest = open_model(options.model, "refiner")
    check_memory(
        f"the refiner '{manifest.name}'", model_size(folder, manifest), options.slots, options.device, dtype
    )
    choices = service_choices(find_device(options.device))
    with oom_as_model_error(manifest.name):
        model = load_model(
            folder, device=options.device, dtype=dtype, choices=choices, num_slots=options.slots
        )
    config = model.unet.config
    info = model_info(
        manifest,
        STAGE_REFINE,
        options,
        image_size=model.image_size,
        scale=1,
        device=str(model.device),
        dtype=name_of(model.dtype),
        limits=ModelInfo.Limits(
            max_image_bytes=IMAGE_LIMITS.max_bytes,
            max_image_pixels=IMAGE_LIMITS.max_pixels,
            max_num_steps=NUM_TRAIN_TIMESTEPS,
        ),
        defaults={
            "num_steps": config.num_steps,
            "skip_ratio": config.skip_ratio,
            "guidance_scale": config.guidance_scale,
        },
        ranges=RANGES,
        inpainting=INPAINTING_TRAINED if model.is_trained_to_inpaint else INPAINTING_BLENDED,
    )
    return LoadedRefiner(RefinerStepper(model, num_slots=options.slots, choices=choices), info, model)


@click.command()
@stage_options("refiner", slots=8)
@click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    default="auto",
    show_default=True,
    envvar="TRIPTYCH_DTYPE",
    help="Of the networks. auto: float32 on a CPU, else bfloat16, or float16 on a GPU without it; on many CPUs bfloat16 is "
    "faster, too.",
)
def serve(options: ServeOptions, dtype: str) -> None:
    """Refine and rank pictures (GLID-3-xl, CLIP)."""
    run_stage(
        RefinerService(),
        add_RefinerServiceServicer_to_server,
        lambda: load(options, dtype),
        service_name=SERVICE_NAME,
        options=options,
    )
