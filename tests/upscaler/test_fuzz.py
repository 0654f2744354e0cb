"""The upscaler, with a small random network, with any message and any bytes at every method."""

import pytest
import torch
from hypothesis import given, strategies as st

from services.engine.engine import Engine
from services.serving.channels import open_channel
from services.serving.server import serving
from services.upscaler.model import place
from services.upscaler.service import SERVICE_NAME, LoadedUpscaler, UpscalerService
from services.upscaler.stepper import UpscalerStepper
from tests.fuzz.stages import answer_any_bytes, answer_any_message, raw
from tests.fuzz.strategies import fuzzed
from tests.upscaler.conftest import random_swinir, small_info
from triptych.v1 import upscaler_pb2
from triptych.v1.upscaler_pb2_grpc import add_UpscalerServiceServicer_to_server

[DESCRIPTOR] = upscaler_pb2.DESCRIPTOR.services_by_name.values()


@pytest.fixture
async def channel():
    stepper = UpscalerStepper(place(random_swinir(), torch.device("cpu")), num_slots=1, max_pixels=2_000)
    service = UpscalerService()
    async with (
        Engine(stepper, max_queue=8) as engine,
        serving(
            lambda server: add_UpscalerServiceServicer_to_server(service, server), services=[SERVICE_NAME]
        ) as running,
        open_channel(running.address) as channel,
    ):
        service.set_ready(LoadedUpscaler(stepper, small_info(stepper)), engine)
        yield channel


@fuzzed(10)
@given(data=st.data())
async def test_any_message_is_answered(channel, data):
    await answer_any_message(channel, DESCRIPTOR, data)


@fuzzed(10)
@given(data=raw)
async def test_any_bytes_are_answered(channel, data):
    await answer_any_bytes(channel, DESCRIPTOR, data)
