"""The DALL·E family behind the generator's service: reads its requests and loads its model."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from services.device_memory import check_free
from services.engine.stepper import JobRequest
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.device import choose_dtype, gpu_memory, oom_as_model_error, set_up_device
from services.generator.dalle.model import Model, load_model
from services.generator.dalle.stepper import GeneratorStepper
from services.generator.loaded import (
    GUIDANCE_SCALES,
    LoadedGenerator,
    check_image_prompts,
    check_setting_names,
    known_words,
)
from services.generator.vocabulary import Vocabulary, read_vocabulary
from services.serving.limits.request_checks import PromptLength, check_items, read_setting
from services.serving.stage_service import ServeOptions, model_info
from services.weights.catalog import model_size
from services.weights.model_folder import Manifest
from triptych.v1.generator_pb2 import GenerateRequest
from triptych.v1.stage_pb2 import STAGE_GENERATE, ModelInfo

# Below it, logits divided by the temperature leave the range of a float; top_k 1 is what such a caller wants.
MIN_TEMPERATURE = 0.01
RANGES = {
    "temperature": ModelInfo.Range(lowest=MIN_TEMPERATURE, highest=100),
    "top_k": ModelInfo.Range(lowest=0, highest=1_000_000),
    "top_p": ModelInfo.Range(lowest=0, highest=1, excludes_lowest=True),
    "guidance_scale": GUIDANCE_SCALES,
}


def read_request(
    request: GenerateRequest, info: ModelInfo, vocabulary: Vocabulary | None = None
) -> list[JobRequest[GenerateJob]]:
    """Checks the whole request; raises InvalidRequest naming the field."""
    settings = request.settings
    check_items(request.images, info.limits)
    check_image_prompts(request, info)
    check_setting_names(settings, info)
    prompt = known_words(request.prompt, info, vocabulary)
    temperature = read_setting(settings, "temperature", info)
    top_k = int(read_setting(settings, "top_k", info))
    top_p = read_setting(settings, "top_p", info)
    guidance_scale = read_setting(settings, "guidance_scale", info)
    preview_every = int(read_setting(settings, "preview_every", info))
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
    device = set_up_device(options.device, threads=options.threads)
    dtype = choose_dtype(dtype)
    if (memory := gpu_memory()) is not None:
        free, total = memory
        size, who = model_size(folder, manifest), f"the generator '{manifest.name}'"
        check_free(who, size, dtype, options.slots, device=device, free_bytes=free, total_bytes=total)
    with oom_as_model_error(manifest.name):
        model = load_model(folder, dtype)
    info = model_info(
        manifest,
        STAGE_GENERATE,
        options,
        image_size=model.vqgan_config.resolution,
        scale=1,
        device=device,
        dtype=dtype,
        architecture="dalle",
        limits=ModelInfo.Limits(max_num_steps=model.dalle_config.image_length),
        defaults=asdict(model.sampling),
        ranges=RANGES,
    )
    stepper = GeneratorStepper(model, num_slots=options.slots)

    return LoadedGenerator(
        stepper, info, read_request, partial(measure_prompt, model), read_vocabulary(folder, manifest)
    )
