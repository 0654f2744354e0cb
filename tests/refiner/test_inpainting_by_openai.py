"""A part of a picture made anew from end to end: the unmodified `openai` package, a gateway, a real refiner."""

import base64
import io
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from PIL import Image

from gateway.access.authentication import Authentication
from gateway.http.context import RequestContext
from gateway.http.server import serving_http
from services.engine.engine import Engine
from services.images.codec import encode_png
from services.refiner.service import SERVICE_NAME, RefinerService, load
from services.serving.server import serving
from services.serving.stage_service import ServeOptions
from services.weights.model_folder import write_manifest
from tests.gateway.fake_stage import gateway_over, scripted_stages
from triptych.v1.refiner_pb2_grpc import add_RefinerServiceServicer_to_server

SIDE = 32


def mask_file() -> bytes:
    """The left half is transparent."""
    levels = np.full((SIDE, SIDE), 255, np.uint8)
    levels[:, : SIDE // 2] = 0
    file = io.BytesIO()
    Image.merge("LA", [Image.new("L", (SIDE, SIDE)), Image.fromarray(levels)]).save(file, "PNG")
    return file.getvalue()


MASK = mask_file()


@asynccontextmanager
async def serving_refiner(folder):
    """A refiner as its process serves it."""
    write_manifest(folder, name="small", stage="refiner")
    loaded = load(
        ServeOptions(
            model=str(folder), host="127.0.0.1", port=0, slots=2, max_queue=6, threads=1, device="cpu", grace=1.0,
            exit_with_parent=False, log_level="info",
        ),
        "float32",
    )  # fmt: skip
    service = RefinerService()
    async with (
        Engine(loaded.stepper, max_queue=6) as engine,
        serving(
            lambda server: add_RefinerServiceServicer_to_server(service, server), services=[SERVICE_NAME]
        ) as running,
    ):
        service.set_ready(loaded, engine)
        await running.set_serving(True)
        yield SimpleNamespace(port=int(running.address.rpartition(":")[2]))


@pytest.fixture
async def client(model_folder, tmp_path):
    async with (
        scripted_stages(refiners=0) as stages,
        serving_refiner(model_folder) as refiner,
    ):
        stages.refiners = [refiner]
        async with (
            gateway_over(stages, tmp_path) as gateway,
            serving_http(RequestContext(gateway.facade, Authentication(None)), grace_s=1) as door,
            openai.AsyncOpenAI(base_url=f"http://{door.address}/v1", api_key="none", timeout=120) as client,
        ):
            yield client


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


async def edited(client, picture, **more):
    answer = await client.images.edit(
        image=encode_png(picture), mask=MASK, prompt="a red house", extra_body={"seed": 7, "steps": 4}, **more
    )
    return [decoded(item.b64_json) for item in sorted(answer.data, key=lambda item: item.seed)]


async def test_only_what_is_transparent_in_the_mask_changes(client, picture):
    first, second = await edited(client, picture, n=2)
    for made in (first, second):
        np.testing.assert_array_equal(made[:, 18:], picture[:, 18:])
        assert np.abs(made - picture)[:, :16].mean() > 20
    assert np.abs(first - second)[:, :16].mean() > 5


async def test_the_same_seed_makes_the_same_part_again(client, picture):
    (first,) = await edited(client, picture)
    (again,) = await edited(client, picture)
    np.testing.assert_array_equal(first, again)


async def test_partial_images_show_what_is_kept(client, picture):
    partials = []
    # So small a network may have finished a picture before its previews are made, which are then left out.
    for _ in range(20):
        stream = await client.images.edit(
            image=encode_png(picture),
            mask=MASK,
            prompt="a red house",
            stream=True,
            partial_images=3,
            extra_body={"steps": 40},
        )
        events = [event async for event in stream]
        if partials := [event for event in events if event.type == "image_edit.partial_image"]:
            break
    assert partials
    for event in partials:
        np.testing.assert_array_equal(decoded(event.b64_json)[:, 18:], picture[:, 18:])
