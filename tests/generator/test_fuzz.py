"""The generator, with a small random network, with any message and any bytes at every method."""

from functools import partial

import pytest
from hypothesis import given, strategies as st

from services.generator.dalle.service import RANGES, measure_prompt, read_request
from services.generator.dalle.stepper import GeneratorStepper
from services.generator.loaded import LoadedGenerator
from services.generator.service import SERVICE_NAME, GeneratorService
from services.serving.stage_service import COMMON_DEFAULTS, COMMON_RANGES
from tests.fuzz.stages import answer_any_bytes, answer_any_message, raw
from tests.fuzz.strategies import fuzzed
from tests.stage_server import serving_stage
from triptych.v1 import generator_pb2
from triptych.v1.generator_pb2_grpc import add_GeneratorServiceServicer_to_server
from triptych.v1.stage_pb2 import ModelInfo

INFO = ModelInfo(
    name="small",
    limits=ModelInfo.Limits(max_images=8, max_prompt_bytes=2_000),
    defaults={"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 3.0, **COMMON_DEFAULTS},
    ranges={**RANGES, **COMMON_RANGES},
)
[DESCRIPTOR] = generator_pb2.DESCRIPTOR.services_by_name.values()


@pytest.fixture
async def channel(model):
    stepper = GeneratorStepper(model, num_slots=2)
    loaded_model = LoadedGenerator(stepper, INFO, read_request, partial(measure_prompt, model))
    async with serving_stage(
        GeneratorService(), add_GeneratorServiceServicer_to_server, SERVICE_NAME, loaded_model, max_queue=8
    ) as channel:
        yield channel


@fuzzed(10)
@given(data=st.data())
async def test_any_message_is_answered(channel, data):
    await answer_any_message(channel, DESCRIPTOR, data)


@fuzzed(10)
@given(data=raw)
async def test_any_bytes_are_answered(channel, data):
    await answer_any_bytes(channel, DESCRIPTOR, data)
