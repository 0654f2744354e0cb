"""The upscaler over gRPC: a real server on a free port around a small random network."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from services.errors import ModelError
from services.images.codec import DecodedImage, encode_png
from services.serving.stage_service import ServeOptions
from services.upscaler.conversion.random_weights import write_random
from services.upscaler.model import place
from services.upscaler.networks.swinir import SwinIR
from services.upscaler.service import SERVICE_NAME, LoadedUpscaler, UpscalerService, load
from services.upscaler.stepper import UpscaleJob, UpscalerStepper, upscale
from services.weights.model_folder import write_manifest
from tests.png_bomb import png_bomb
from tests.stage_server import serving_stage
from tests.upscaler.conftest import random_picture, random_swinir, small_info
from triptych.v1.stage_pb2 import STAGE_UPSCALE, ImageData, StageEvent
from triptych.v1.upscaler_pb2 import UpscaleRequest, UpscalerServiceGetModelRequest, UpscaleSettings
from triptych.v1.upscaler_pb2_grpc import UpscalerServiceStub, add_UpscalerServiceServicer_to_server


@pytest.fixture(scope="module")
def network() -> SwinIR:
    return place(random_swinir(), torch.device("cpu"))


@pytest.fixture
async def stub(network: SwinIR) -> AsyncIterator[UpscalerServiceStub]:
    stepper = UpscalerStepper(network, num_slots=1, max_pixels=10_000)
    loaded_model = LoadedUpscaler(stepper, small_info(stepper))
    async with serving_stage(
        UpscalerService(), add_UpscalerServiceServicer_to_server, SERVICE_NAME, loaded_model, max_queue=4
    ) as channel:
        yield UpscalerServiceStub(channel)


def request(*pictures: np.ndarray, **settings: int) -> UpscaleRequest:
    inputs = [
        UpscaleRequest.Input(index=index, image=ImageData(data=encode_png(picture)))
        for index, picture in enumerate(pictures)
    ]
    return UpscaleRequest(images=inputs, settings=UpscaleSettings(**settings))


async def events_of(stub: UpscalerServiceStub, sent: UpscaleRequest) -> list[StageEvent]:
    return [response.event async for response in stub.Upscale(sent)]


def decoded(image: ImageData) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.data)))


async def test_a_picture_comes_back_enlarged_after_progress_for_each_tile(
    stub: UpscalerServiceStub, network: SwinIR
) -> None:
    picture = random_picture(20, 30)
    events = await events_of(stub, request(picture, tile_size=16, tile_overlap=8))

    assert events[0].HasField("accepted")
    assert [event.WhichOneof("kind") for event in events[-2:]] == ["image", "timing"]
    finished = events[-2].image
    assert (finished.image.width, finished.image.height) == (120, 80)
    assert (decoded(finished.image) == upscale(network, picture, tile_size=16, tile_overlap=8)).all()
    steps = [event.progress.step for event in events if event.HasField("progress")]
    assert steps == sorted(steps)


async def test_each_picture_of_a_request_comes_back_under_its_index(
    stub: UpscalerServiceStub, network: SwinIR
) -> None:
    pictures = [random_picture(7, 9, seed) for seed in range(3)]
    events = await events_of(stub, request(*pictures))
    images = {event.image.index: event.image.image for event in events if event.HasField("image")}
    assert images.keys() == {0, 1, 2}
    for index, picture in enumerate(pictures):
        assert (decoded(images[index]) == upscale(network, picture)).all()


async def test_previews_are_as_large_as_the_result(stub: UpscalerServiceStub) -> None:
    sent = request(random_picture(60, 60), tile_size=16, tile_overlap=0, preview_every=1)
    previews: list[StageEvent.Preview] = []
    # So small a network may have finished a picture before its preview is made, which is then left out.
    for _ in range(100):
        if previews := [event.preview for event in await events_of(stub, sent) if event.HasField("preview")]:
            break
    assert previews
    assert {(preview.image.width, preview.image.height) for preview in previews} == {(240, 240)}


async def test_a_caller_that_goes_away_gives_its_slot_to_the_next(stub: UpscalerServiceStub) -> None:
    long_one = stub.Upscale(request(random_picture(100, 100), tile_size=8, tile_overlap=0))
    await long_one.read()
    long_one.cancel()
    events = await events_of(stub, request(random_picture(7, 7)))
    assert events[-1].HasField("timing")


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_picture(64, 64)).save(file, "JPEG")
    return file.getvalue()[:500]


SMALL = encode_png(random_picture(8, 8))


@pytest.mark.parametrize(
    ("data", "settings", "field"),
    [
        ([], {}, "images"),
        ([SMALL] * 65, {}, "images"),
        ([b""], {}, "images[0].image"),
        ([SMALL, b"no picture"], {}, "images[1].image"),
        ([png_bomb()], {}, "images[0].image"),
        ([truncated_jpeg()], {}, "images[0].image"),
        ([encode_png(random_picture(101, 100))], {}, "images[0].image"),
        ([SMALL], {"tile_size": -1}, "settings.tile_size"),
        ([SMALL], {"tile_size": 10}, "settings.tile_size"),
        ([SMALL], {"tile_size": 100_000}, "settings.tile_size"),
        ([SMALL], {"tile_size": 16, "tile_overlap": 16}, "settings.tile_overlap"),
        ([SMALL], {"tile_overlap": -1}, "settings.tile_overlap"),
        ([SMALL], {"preview_every": -1}, "settings.preview_every"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_the_name_of_its_field(
    data: list[bytes], settings: dict[str, int], field: str, stub: UpscalerServiceStub
) -> None:
    inputs = [UpscaleRequest.Input(index=i, image=ImageData(data=one)) for i, one in enumerate(data)]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await events_of(stub, UpscaleRequest(images=inputs, settings=UpscaleSettings(**settings)))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"{field}: ")


async def test_an_index_that_is_there_twice_is_refused(stub: UpscalerServiceStub) -> None:
    inputs = [UpscaleRequest.Input(index=3, image=ImageData(data=SMALL))] * 2
    with pytest.raises(grpc.aio.AioRpcError, match=r"images\[1\]\.index"):
        await events_of(stub, UpscaleRequest(images=inputs))


async def test_the_model_is_described(stub: UpscalerServiceStub) -> None:
    answer = await stub.GetModel(UpscalerServiceGetModelRequest())
    assert (answer.model.name, answer.model.scale) == ("small", 4)


def options(model: Path, **changes: Any) -> ServeOptions:
    values = {"host": "127.0.0.1", "port": 0, "slots": 2, "max_queue": 8, "threads": 1, "device": "cpu"}
    values |= {"grace": 0.0, "exit_with_parent": False, "log_level": "info"} | changes
    return ServeOptions(model=str(model), **values)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    write_random("tiny", tmp_path)
    write_manifest(tmp_path, name="small", stage="upscaler")
    return tmp_path


def test_a_model_folder_loads_with_what_is_to_say_of_it(model_folder: Path) -> None:
    loaded = load(options(model_folder), "float32")
    assert loaded.info.name == "small"
    assert loaded.info.stage == STAGE_UPSCALE
    assert (loaded.info.scale, loaded.info.device, loaded.info.dtype) == (4, "cpu", "float32")
    assert loaded.info.limits.max_image_pixels == 25 * 2**20 == loaded.stepper.max_pixels
    assert loaded.info.limits.num_slots == 2


def test_a_changed_file_is_not_served(model_folder: Path) -> None:
    file = model_folder / "swinir" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ModelError, match="sha256"):
        load(options(model_folder), "float32")


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str, model_folder: Path) -> None:
    with pytest.raises(ModelError, match="device"):
        load(options(model_folder, device=device), "float32")


def test_what_it_multiplies_in_is_reported(model_folder: Path) -> None:
    dtypes = [load(options(model_folder), dtype).info.dtype for dtype in ("auto", "bfloat16", "float16")]
    assert dtypes == ["float32", "bfloat16", "float16"]


def test_the_built_in_model_enlarges_a_picture() -> None:
    loaded = load(options(Path("tiny")), "float32")
    slots = [0, 1]
    pictures = [random_picture(32, 48, seed) for seed in slots]
    assert {loaded.stepper.admit(slot, UpscaleJob(DecodedImage(pictures[slot]))) for slot in slots} == {1}
    loaded.stepper.step(slots)
    # Noise is no scene, but its colours are where they were.
    for picture, result in zip(pictures, map(loaded.stepper.result, slots), strict=True):
        assert result.shape == (128, 192, 3)
        assert abs(result.mean() - picture.mean()) < 5
