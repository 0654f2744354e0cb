"""The generator as a gRPC service: checks what a caller sends and makes each candidate a job of the engine.

It serves whichever family the model's manifest names (`architecture`), and imports that family's libraries alone. How
the process starts and stops is services/serving/stage_service.py's.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import click

from services.errors import ModelError
from services.families import find_family
from services.generator.loaded import LoadedGenerator, read_prompt
from services.serving.limits.call_gate import Context
from services.serving.limits.request_checks import check_prompt
from services.serving.stage_command import run_stage, stage_options
from services.serving.stage_service import ServeOptions, StageService
from services.weights.cache import open_model
from triptych._installation import missing_library
from triptych.v1.generator_pb2 import (
    GenerateRequest,
    GenerateResponse,
    GeneratorServiceGetModelRequest,
    GeneratorServiceGetModelResponse,
    GeneratorServiceReadPromptRequest,
    GeneratorServiceReadPromptResponse,
)
from triptych.v1.generator_pb2_grpc import GeneratorServiceServicer, add_GeneratorServiceServicer_to_server

SERVICE_NAME = "triptych.v1.GeneratorService"


class GeneratorService(StageService[LoadedGenerator, Any], GeneratorServiceServicer):
    async def Generate(self, request: GenerateRequest, context: Context) -> AsyncIterator[GenerateResponse]:
        loaded = self.loaded
        arguments = request, loaded.info, loaded.vocabulary
        # Pictures take tens of milliseconds to decode, in which every other call would wait.
        tickets = (
            await asyncio.to_thread(loaded.read_request, *arguments)
            if request.image_prompts
            else loaded.read_request(*arguments)
        )
        # Of all candidates the same.
        warnings = loaded.measure_prompt(tickets[0].job.prompt).warnings("generator")
        tickets = [replace(ticket, warnings={**ticket.warnings, **warnings}) for ticket in tickets]
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


def load(options: ServeOptions, dtype: str = "auto") -> LoadedGenerator:
    """Raises ModelError when the device or a library is not there or the model is not whole."""
    folder, manifest = open_model(options.model, "generator")
    family = find_family("generator", manifest.architecture)
    try:
        module = importlib.import_module(f"services.{family.package}.service")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "services":
            raise
        raise ModelError(
            missing_library(error.name, f"a generator of the architecture {family.architecture}")
        ) from None
    loaded: LoadedGenerator = module.load(options, folder, manifest, dtype=dtype)
    return loaded


@click.command()
@stage_options("generator", slots=8)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    envvar="TRIPTYCH_DTYPE",
    help="Of the networks. auto: float32 on a CPU, else bfloat16, or float16 on a GPU without it.",
)
def serve(options: ServeOptions, dtype: str) -> None:
    """Make candidates from a prompt (DALL·E Mini or unCLIP, by the model)."""
    run_stage(
        GeneratorService(),
        add_GeneratorServiceServicer_to_server,
        lambda: load(options, dtype),
        service_name=SERVICE_NAME,
        options=options,
    )
