"""The upscaler, with a small random network, with any message and any bytes at every method."""

import pytest
import torch
from hypothesis import given, strategies as st

from services.upscaler.model import place
from services.upscaler.service import SERVICE_NAME, LoadedUpscaler, UpscalerService
from services.upscaler.stepper import UpscalerStepper
from tests.fuzz.stages import answer_any_bytes, answer_any_message, raw
from tests.fuzz.strategies import fuzzed
from tests.stage_server import serving_stage
from tests.upscaler.conftest import random_swinir, small_info
from triptych.v1 import upscaler_pb2
from triptych.v1.upscaler_pb2_grpc import add_UpscalerServiceServicer_to_server

[DESCRIPTOR] = upscaler_pb2.DESCRIPTOR.services_by_name.values()


@pytest.fixture
async def channel():
    stepper = UpscalerStepper(place(random_swinir(), torch.device("cpu")), num_slots=1, max_pixels=2_000)
    loaded_model = LoadedUpscaler(stepper, small_info(stepper))
    async with serving_stage(
        UpscalerService(), add_UpscalerServiceServicer_to_server, SERVICE_NAME, loaded_model, max_queue=8
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
