import io
import shutil
from dataclasses import replace

import grpc
import numpy as np
import pytest
from PIL import Image

from services.errors import ModelError
from services.images.codec import encode_png
from services.refiner.clip_scores import rank
from services.refiner.conversion.random_weights import write_random_part
from services.refiner.service import SERVICE_NAME, RefinerService, load
from services.refiner.stepper import RefineJob, refine
from services.serving.stage_service import ServeOptions
from services.weights.model_folder import write_manifest
from tests.png_bomb import png_bomb
from tests.refiner.conftest import SMALL
from tests.stage_server import serving_stage
from triptych.v1.refiner_pb2 import (
    RankRequest,
    RefineRequest,
    RefinerServiceGetModelRequest,
    RefineSettings,
)
from triptych.v1.refiner_pb2_grpc import RefinerServiceStub, add_RefinerServiceServicer_to_server
from triptych.v1.stage_pb2 import (
    INPAINTING_BLENDED,
    INPAINTING_TRAINED,
    STAGE_REFINE,
    ImageData,
    ImageItem,
)


def options(model):
    return ServeOptions(
        model=str(model), host="127.0.0.1", port=0, slots=2, max_queue=6, threads=1, device="cpu", grace=1.0,
        exit_with_parent=False, log_level="info",
    )  # fmt: skip


@pytest.fixture(scope="module")
def served_folder(model_folder):
    write_manifest(
        model_folder,
        name="small",
        stage="refiner",
        vocabulary={"colours": ["red"]},
        example_prompts=("a red house",),
    )
    return model_folder


@pytest.fixture(scope="module")
def loaded(served_folder):
    return load(options(served_folder), "float32")


@pytest.fixture
async def stub(loaded):
    async with serving_stage(
        RefinerService(), add_RefinerServiceServicer_to_server, SERVICE_NAME, loaded, max_queue=6
    ) as channel:
        yield RefinerServiceStub(channel)


def request(picture=None, *, mask=None, seeds=(7,), prompt="a red house", **settings):
    sent = RefineRequest(
        prompt=prompt,
        images=[ImageItem(index=index, seed=seed) for index, seed in enumerate(seeds)],
        settings=RefineSettings(**{"num_steps": 8, **settings}),
        init_seed=3,
    )
    if picture is not None:
        sent.init_image.CopyFrom(ImageData(data=encode_png(picture)))
    if mask is not None:
        sent.mask.data = mask
    return sent


def mask_of(levels):
    """A mask whose pixels are so opaque."""
    file = io.BytesIO()
    Image.merge("LA", [Image.new("L", levels.shape[::-1]), Image.fromarray(levels)]).save(file, "PNG")
    return file.getvalue()


# The left half is repainted.
LEFT = mask_of(np.repeat(np.uint8([0, 255]), 16)[None].repeat(32, 0))
BLANK = np.zeros((32, 32, 3), np.uint8)


async def events_of(stub, sent):
    return [response.event async for response in stub.Refine(sent)]


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(image.data)))


async def test_variations_come_back_with_their_seeds(stub, loaded, picture):
    events = await events_of(stub, request(picture, seeds=(7, 2**64 - 1)))
    images = {event.image.index: event.image for event in events if event.HasField("image")}
    assert {index: image.seed for index, image in images.items()} == {0: 7, 1: 2**64 - 1}
    [expected] = refine(loaded.model, [RefineJob("a red house", picture, seed=7, init_seed=3, num_steps=8)])
    # Alone and in a batch: at most a level apart.
    assert np.abs(decoded(images[0].image).astype(int) - expected).max() <= 1


async def test_texts_that_are_longer_than_the_context_are_refined_with_a_warning(stub, picture):
    sent = request(picture, prompt="a red house and " * 9, negative_prompt="a dog " * 9)
    (warning,) = [event.warning for event in await events_of(stub, sent) if event.HasField("warning")]
    assert warning.reason == "PROMPT_TRUNCATED"
    prompt, negative = warning.message.split("; its end has no effect")[:2]
    assert prompt.startswith("prompt: the refiner reads 20 text tokens")
    assert "negative_prompt: the refiner reads 20 text tokens" in negative


async def test_with_a_mask_the_rest_of_the_picture_comes_back(stub, picture):
    events = await events_of(stub, request(picture, mask=LEFT, seeds=(7, 8)))
    made = [decoded(event.image.image).astype(int) for event in events if event.HasField("image")]
    for image in made:
        np.testing.assert_array_equal(image[:, 18:], picture[:, 18:])
        assert np.abs(image - picture)[:, :16].mean() > 20
    assert np.abs(made[0] - made[1])[:, :16].mean() > 5


async def test_with_a_mask_no_step_is_skipped_unless_that_is_asked_for(stub, picture):
    totals = [
        event.progress.num_steps
        for sent in (request(picture, mask=LEFT), request(picture, mask=LEFT, skip_ratio=0.25))
        for event in await events_of(stub, sent)
        if event.HasField("progress")
    ]
    assert set(totals) == {8 + 9, 6 + 9}


async def test_progress_counts_every_call_of_the_network(stub, picture):
    events = await events_of(stub, request(picture))
    totals = {event.progress.num_steps for event in events if event.HasField("progress")}
    assert totals == {4 + 9}


async def test_previews_are_asked_for_by_their_distance(stub):
    previews = []
    # So small a network may have finished a picture before its preview is made, which is then left out.
    for _ in range(100):
        events = await events_of(stub, request(preview_every=2))
        if previews := [event.preview for event in events if event.HasField("preview")]:
            break
    assert previews
    assert {decoded(preview.image).shape for preview in previews} == {(32, 32, 3)}


async def test_a_picture_is_made_without_an_init_image_whatever_the_skip_ratio(stub):
    events = await events_of(stub, request(skip_ratio=0.9))
    assert {event.progress.num_steps for event in events if event.HasField("progress")} == {8 + 9}


async def test_a_caller_that_goes_away_gives_its_slots_to_the_next(stub):
    long_one = stub.Refine(request(num_steps=1000, seeds=(1, 2)))
    await long_one.read()
    long_one.cancel()
    events = await events_of(stub, request())
    assert events[-1].HasField("timing")


async def test_pictures_are_ranked_in_the_request_s_order(stub, loaded, picture):
    other = 255 - picture
    response = await stub.Rank(
        RankRequest(prompt="a red house", images=[ImageData(data=encode_png(p)) for p in (picture, other)])
    )
    assert list(response.scores) == pytest.approx(
        rank(loaded.model, "a red house", [picture, other]), abs=1e-6
    )


async def test_the_model_explains_what_it_is_and_what_it_takes(stub):
    model = (await stub.GetModel(RefinerServiceGetModelRequest())).model
    assert (model.name, model.stage, model.image_size, model.device) == ("small", STAGE_REFINE, 32, "cpu")
    assert model.inpainting == INPAINTING_BLENDED
    assert dict(model.defaults) == {
        "num_steps": 100, "skip_ratio": 0.5, "guidance_scale": 5.0, "preview_every": 0
    }  # fmt: skip
    assert list(model.vocabulary["colours"].words) == ["red"]


def test_a_model_that_was_trained_to_fill_in_reports_it(tmp_path):
    for part, config in SMALL.items():
        config = replace(config, in_channels=8) if part == "unet" else config
        write_random_part(part, config, tmp_path / part)
    write_manifest(tmp_path, name="fills-in", stage="refiner")
    assert load(options(tmp_path), "float32").info.inpainting == INPAINTING_TRAINED


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("prompt", request(prompt="")),
        ("prompt", request(prompt="a" * 10_000)),
        ("images", request(seeds=())),
        ("images", request(seeds=range(10_000))),
        ("settings.num_steps", request(num_steps=3)),
        ("settings.num_steps", request(num_steps=1001)),
        ("settings.guidance_scale", request(guidance_scale=float("nan"))),
        ("settings.skip_ratio", request(skip_ratio=-0.5)),
        ("settings.skip_ratio", request(np.zeros((8, 8, 3), np.uint8), skip_ratio=1.0)),
        ("settings.skip_ratio", request(np.zeros((8, 8, 3), np.uint8), skip_ratio=0.9)),
        ("settings.negative_prompt", request(negative_prompt="a" * 10_000)),
        ("settings.preview_every", request(preview_every=-1)),
        ("mask", request(mask=LEFT)),
        ("mask", request(BLANK, mask=b"")),
        ("mask", request(BLANK, mask=b"GIF89a")),
        ("mask", request(BLANK, mask=png_bomb())),
        ("mask", request(BLANK[:16], mask=LEFT)),
        ("mask", request(BLANK, mask=mask_of(np.full((32, 32), 255, np.uint8)))),
        ("init_image", RefineRequest(prompt="a", images=[ImageItem()], init_image=ImageData(data=b"GIF89a"))),
        (
            "init_image",
            RefineRequest(prompt="a", images=[ImageItem()], init_image=ImageData(data=png_bomb())),
        ),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_by_field(stub, field, sent):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await events_of(stub, sent)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("prompt", RankRequest(prompt=" ", images=[ImageData()])),
        ("images", RankRequest(prompt="a")),
        ("images[0]", RankRequest(prompt="a", images=[ImageData(data=b"nothing")])),
    ],
)
async def test_a_ranking_that_cannot_be_made_is_refused_by_field(stub, field, sent):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stub.Rank(sent)
    assert error.value.details().startswith(f"{field}: ")


def test_a_model_whose_file_changed_is_refused(served_folder, tmp_path):
    folder = shutil.copytree(served_folder, tmp_path / "changed")
    path = folder / "unet" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="expected sha256"):
        load(options(folder), "float32")
