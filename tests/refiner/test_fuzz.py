"""The refiner, with small random networks, with any message and any bytes at every method."""

import pytest
from hypothesis import given, strategies as st

from services.refiner.service import SERVICE_NAME, RefinerService, load
from services.serving.stage_service import ServeOptions
from services.weights.model_folder import write_manifest
from tests.fuzz.stages import answer_any_bytes, answer_any_message, raw
from tests.fuzz.strategies import fuzzed
from tests.stage_server import serving_stage
from triptych.v1 import refiner_pb2
from triptych.v1.refiner_pb2_grpc import add_RefinerServiceServicer_to_server

[DESCRIPTOR] = refiner_pb2.DESCRIPTOR.services_by_name.values()


@pytest.fixture(scope="module")
def loaded(model_folder):
    write_manifest(model_folder, name="small", stage="refiner")
    options = ServeOptions(
        model=str(model_folder), host="127.0.0.1", port=0, slots=2, max_queue=6, threads=1, device="cpu", grace=1.0,
        exit_with_parent=False, log_level="info",
    )  # fmt: skip
    return load(options, "float32")


@pytest.fixture
async def channel(loaded):
    async with serving_stage(
        RefinerService(), add_RefinerServiceServicer_to_server, SERVICE_NAME, loaded, max_queue=6
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
