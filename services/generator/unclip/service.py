"""The unCLIP family behind the generator's service: reads its requests, decodes their pictures and loads its model."""

from functools import partial
from pathlib import Path

import torch

from services.engine.stepper import JobRequest
from services.errors import InvalidRequest
from services.generator.loaded import (
    GUIDANCE_SCALES,
    LoadedGenerator,
    check_image_prompts,
    check_setting_names,
    known_words,
)
from services.generator.unclip.model import UnclipModel, load_model
from services.generator.unclip.schedule import MIN_STEPS
from services.generator.unclip.stepper import (
    LOWEST_STEPS,
    MAX_IMAGE_PROMPTS,
    GenerateJob,
    ImagePrompt,
    TextDifference,
    UnclipStepper,
)
from services.generator.vocabulary import Vocabulary, read_vocabulary
from services.images.codec import ImageLimits, decode_image
from services.pytorch.device import check_memory, name_of, oom_as_model_error
from services.serving.limits.request_checks import (
    PromptLength,
    check_items,
    check_prompt,
    number,
    read_setting,
)
from services.serving.stage_service import ServeOptions, model_info
from services.weights.catalog import model_size
from services.weights.model_folder import Manifest
from triptych.v1.generator_pb2 import GenerateRequest
from triptych.v1.stage_pb2 import STAGE_GENERATE, ModelInfo

IMAGE_LIMITS = ImageLimits()
DEFAULT_DIFFERENCE = TextDifference("", "").weight
SCALES = ("guidance_scale", "prior_guidance_scale")
STEPS = tuple(LOWEST_STEPS)


def read_request(
    request: GenerateRequest, info: ModelInfo, vocabulary: Vocabulary | None = None
) -> list[JobRequest[GenerateJob]]:
    """Checks the whole request and decodes its pictures; raises InvalidRequest naming the field."""
    settings, defaults = request.settings, info.defaults
    check_items(request.images, info.limits)
    check_image_prompts(request, info)
    check_setting_names(settings, info)
    # Pictures alone give variations: then there may be nothing to say.
    is_blank = bool(request.image_prompts) and not request.prompt.strip()
    prompt = "" if is_blank else known_words(request.prompt, info, vocabulary)
    steps = {name: int(read_setting(settings, name, info)) for name in STEPS if name in defaults}
    scales = {name: read_setting(settings, name, info) for name in SCALES if name in defaults}
    preview_every = int(read_setting(settings, "preview_every", info))
    image_prompts = tuple(
        ImagePrompt(
            decode_image(one.image.data, IMAGE_LIMITS, f"image_prompts[{place}].image"),
            number(one, "weight", 1, high=1e6, path=f"image_prompts[{place}]"),
        )
        for place, one in enumerate(request.image_prompts)
    )
    jobs = [
        GenerateJob(
            prompt=prompt,
            seed=item.seed,
            image_prompts=image_prompts,
            text_difference=_text_difference(request, info),
            prior_num_steps=steps.get("prior_num_steps", MIN_STEPS),
            decoder_num_steps=steps["decoder_num_steps"],
            super_res_num_steps=steps.get("super_res_num_steps", 0),
            prior_guidance_scale=scales.get("prior_guidance_scale", 1.0),
            guidance_scale=scales["guidance_scale"],
        )
        for item in request.images
    ]
    jobs[0].check()
    if not image_prompts and "prior_num_steps" not in defaults:
        raise InvalidRequest(
            "image_prompts", f"must be given: '{info.name}' has no prior, which draws from text"
        )
    return [
        JobRequest(item.index, job, preview_every) for item, job in zip(request.images, jobs, strict=True)
    ]


def _text_difference(request: GenerateRequest, info: ModelInfo) -> TextDifference | None:
    if not request.HasField("text_difference"):
        return None
    difference = request.text_difference
    texts = [
        check_prompt(getattr(difference, name), info.limits.max_prompt_bytes, f"text_difference.{name}")
        for name in ("source", "target")
    ]
    weight = number(difference, "weight", DEFAULT_DIFFERENCE, high=1, path="text_difference")
    return TextDifference(texts[0], texts[1], weight)


def measure_prompt(model: UnclipModel, prompt: str) -> PromptLength:
    return PromptLength(model.tokenizer.count(prompt), model.tokenizer.num_tokens)


def load(options: ServeOptions, folder: Path, manifest: Manifest, *, dtype: str) -> LoadedGenerator:
    """Raises ModelError when the device is not there or the model is not whole."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    size = model_size(folder, manifest)
    check_memory(f"the generator '{manifest.name}'", size, options.slots, options.device, dtype)
    with oom_as_model_error(manifest.name):
        model = load_model(folder, device=options.device, dtype=dtype)
    defaults: dict[str, float] = {
        "decoder_num_steps": model.decoder_diffusion.num_steps,
        "guidance_scale": model.decoder_diffusion.guidance_scale,
    }
    if model.prior is not None:
        defaults |= {
            "prior_num_steps": model.prior_diffusion.num_steps,
            "prior_guidance_scale": model.prior_diffusion.guidance_scale,
        }
    if model.super_res is not None:
        defaults["super_res_num_steps"] = model.super_res_diffusion.num_steps
    diffusions = (model.prior_diffusion, model.decoder_diffusion, model.super_res_diffusion)
    ranges = {
        name: ModelInfo.Range(lowest=LOWEST_STEPS[name], highest=diffusion.num_train_timesteps)
        for name, diffusion in zip(STEPS, diffusions, strict=True)
        if name in defaults
    } | {name: GUIDANCE_SCALES for name in SCALES if name in defaults}
    info = model_info(
        manifest,
        STAGE_GENERATE,
        options,
        image_size=model.image_size,
        scale=1,
        device=str(model.device),
        dtype=name_of(model.dtype),
        architecture="unclip",
        limits=ModelInfo.Limits(
            max_image_bytes=IMAGE_LIMITS.max_bytes,
            max_image_pixels=IMAGE_LIMITS.max_pixels,
            max_image_prompts=MAX_IMAGE_PROMPTS if model.image_encoder else 0,
        ),
        defaults=defaults,
        ranges=ranges,
    )
    stepper = UnclipStepper(model, num_slots=options.slots)

    return LoadedGenerator(
        stepper, info, read_request, partial(measure_prompt, model), read_vocabulary(folder, manifest)
    )
