"""The generator as a gRPC service: checks what a caller sends and makes each candidate a job of the engine.

It knows the protocol and the stepper; how the process starts and stops is services/serving/stage_service.py's.
"""

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import click

from services.engine.stepper import JobRequest
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.device import oom_as_model_error, set_up_device
from services.generator.dalle.model import load_model
from services.generator.dalle.stepper import GeneratorStepper
from services.generator.vocabulary import Vocabulary, read_vocabulary
from services.serving.call_gate import Context
from services.serving.request_checks import check_items, check_prompt, integer, number
from services.serving.stage_command import run_stage, stage_options
from services.serving.stage_service import ServeOptions, StageService, model_info
from services.weights.cache import open_model
from triptych.v1.generator_pb2 import (
    GenerateRequest,
    GenerateResponse,
    GeneratorServiceGetModelRequest,
    GeneratorServiceGetModelResponse,
    GeneratorServiceReadPromptRequest,
    GeneratorServiceReadPromptResponse,
)
from triptych.v1.generator_pb2_grpc import GeneratorServiceServicer, add_GeneratorServiceServicer_to_server
from triptych.v1.stage_pb2 import STAGE_GENERATE, ModelInfo, PromptReading, WordReplacement

SERVICE_NAME = "triptych.v1.GeneratorService"
# Below it, logits divided by the temperature leave the range of a float; top_k 1 is what such a caller wants.
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
MAX_GUIDANCE_SCALE = 100.0
MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class LoadedGenerator:
    stepper: GeneratorStepper
    info: ModelInfo
    # Of a small model; others know all words.
    vocabulary: Vocabulary | None = None


class GeneratorService(StageService[LoadedGenerator, GenerateJob], GeneratorServiceServicer):
    async def Generate(self, request: GenerateRequest, context: Context) -> AsyncIterator[GenerateResponse]:
        tickets = read_request(request, self.loaded.info, self.loaded.vocabulary)
        seeds = {item.index: item.seed for item in request.images}
        async for event in self.stream(tickets, seeds=seeds, caller=request.caller, context=context):
            yield GenerateResponse(event=event)

    async def ReadPrompt(
        self, request: GeneratorServiceReadPromptRequest, context: Context
    ) -> GeneratorServiceReadPromptResponse:
        prompt = check_prompt(request.prompt, self.loaded.info.limits.max_prompt_bytes)
        return GeneratorServiceReadPromptResponse(reading=read_prompt(prompt, self.loaded.vocabulary))

    async def GetModel(
        self, request: GeneratorServiceGetModelRequest, context: Context
    ) -> GeneratorServiceGetModelResponse:
        return GeneratorServiceGetModelResponse(model=self.loaded.info)


def read_request(
    request: GenerateRequest, info: ModelInfo, vocabulary: Vocabulary | None = None
) -> list[JobRequest[GenerateJob]]:
    """Checks the whole request; raises InvalidRequest naming the field."""
    settings, defaults = request.settings, info.defaults
    check_items(request.images, info.limits)
    prompt = check_prompt(request.prompt, info.limits.max_prompt_bytes)
    prompt = read_prompt(prompt, vocabulary).prompt
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


def read_prompt(prompt: str, vocabulary: Vocabulary | None) -> PromptReading:
    """What is drawn for a prompt: itself, unless the model has a table of the words that it replaces."""
    if vocabulary is None:
        return PromptReading(prompt=prompt)
    replaced = vocabulary.replace_words(prompt)
    replacements = [
        WordReplacement(word=one.word, replacement=one.replacement, similarity=one.similarity)
        for one in replaced.replacements
    ]
    return PromptReading(
        prompt=replaced.prompt,
        replacements=replacements,
        is_unknown=not replaced.known,
        suggestions=replaced.suggestions,
    )


def load(options: ServeOptions) -> LoadedGenerator:
    """Raises ModelError when the device is not there or the model is not whole."""
    device = set_up_device(options.device, threads=options.threads)
    folder, manifest = open_model(options.model, "generator")
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
        limits=ModelInfo.Limits(max_num_steps=model.dalle_config.image_length),
        defaults={**asdict(model.sampling), "preview_every": 0},
        ranges={
            "temperature": ModelInfo.Range(lowest=MIN_TEMPERATURE, highest=MAX_TEMPERATURE),
            "guidance_scale": ModelInfo.Range(lowest=0, highest=MAX_GUIDANCE_SCALE),
        },
    )
    return LoadedGenerator(
        GeneratorStepper(model, num_slots=options.slots), info, read_vocabulary(folder, manifest)
    )


@click.command()
@stage_options(50051, slots=8)
def serve(options: ServeOptions) -> None:
    """Make candidates from a prompt (DALL·E Mini)."""
    run_stage(
        GeneratorService(),
        add_GeneratorServiceServicer_to_server,
        lambda: load(options),
        service_name=SERVICE_NAME,
        options=options,
    )
