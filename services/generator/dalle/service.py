"""The DALL·E family behind the generator's service: reads its requests and loads its model."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from services.engine.stepper import JobRequest
from services.errors import ModelError
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.device import oom_as_model_error, set_up_device
from services.generator.dalle.model import Model, load_model
from services.generator.dalle.stepper import GeneratorStepper
from services.generator.loaded import (
    MAX_GUIDANCE_SCALE,
    MAX_INT32,
    LoadedGenerator,
    check_image_prompts,
    check_setting_names,
    known_words,
)
from services.generator.vocabulary import Vocabulary, read_vocabulary
from services.serving.limits.request_checks import PromptLength, check_items, integer, number
from services.serving.stage_service import ServeOptions, model_info
from services.weights.model_folder import Manifest
from triptych.v1.generator_pb2 import GenerateRequest
from triptych.v1.stage_pb2 import STAGE_GENERATE, ModelInfo

# Below it, logits divided by the temperature leave the range of a float; top_k 1 is what such a caller wants.
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0


def read_request(
    request: GenerateRequest, info: ModelInfo, vocabulary: Vocabulary | None = None
) -> list[JobRequest[GenerateJob]]:
    """Checks the whole request; raises InvalidRequest naming the field."""
    settings, defaults = request.settings, info.defaults
    check_items(request.images, info.limits)
    check_image_prompts(request, info)
    check_setting_names(settings, info)
    prompt = known_words(request.prompt, info, vocabulary)
    temperature = number(
        settings, "temperature", defaults["temperature"], low=MIN_TEMPERATURE, high=MAX_TEMPERATURE
    )
    top_k = integer(settings, "top_k", int(defaults["top_k"]), low=0, high=MAX_INT32)
    top_p = number(settings, "top_p", defaults["top_p"], low=0, high=1, above_low=True)
    guidance_scale = number(
        settings, "guidance_scale", defaults["guidance_scale"], low=0, high=MAX_GUIDANCE_SCALE
    )
    preview_every = integer(settings, "preview_every", 0, low=0, high=MAX_INT32)
    return [
        JobRequest(
            item.index,
            GenerateJob(prompt, item.seed, temperature, top_k, top_p, guidance_scale),
            preview_every,
        )
        for item in request.images
    ]


def measure_prompt(model: Model, prompt: str) -> PromptLength:
    return PromptLength(model.num_text_tokens(prompt), model.dalle_config.max_text_length)


def load(options: ServeOptions, folder: Path, manifest: Manifest, *, dtype: str) -> LoadedGenerator:
    """Raises ModelError when the device is not there or the model is not whole."""
    if dtype != "float32":
        raise ModelError(f"dtype: '{manifest.name}' computes in float32 only, got '{dtype}'")
    device = set_up_device(options.device, threads=options.threads)
    with oom_as_model_error(manifest.name):
        model = load_model(folder)
    info = model_info(
        manifest,
        STAGE_GENERATE,
        options,
        image_size=model.vqgan_config.resolution,
        scale=1,
        device=device,
        dtype="float32",
        architecture="dalle",
        limits=ModelInfo.Limits(max_num_steps=model.dalle_config.image_length),
        defaults={**asdict(model.sampling), "preview_every": 0},
        ranges={
            "temperature": ModelInfo.Range(lowest=MIN_TEMPERATURE, highest=MAX_TEMPERATURE),
            "guidance_scale": ModelInfo.Range(lowest=0, highest=MAX_GUIDANCE_SCALE),
        },
    )
    stepper = GeneratorStepper(model, num_slots=options.slots)

    return LoadedGenerator(
        stepper, info, read_request, partial(measure_prompt, model), read_vocabulary(folder, manifest)
    )
