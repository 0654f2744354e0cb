"""The generator over gRPC: a real server on a free port around a small random network."""

import io
from functools import partial

import grpc
import numpy as np
import pytest
from PIL import Image

from services.errors import InvalidRequest
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.service import RANGES, measure_prompt, read_request
from services.generator.dalle.stepper import GeneratorStepper, generate
from services.generator.loaded import LoadedGenerator
from services.generator.service import SERVICE_NAME, GeneratorService
from services.generator.vocabulary import Vocabulary
from services.serving.stage_service import COMMON_DEFAULTS, COMMON_RANGES
from tests.stage_server import serving_stage
from triptych.v1.generator_pb2 import (
    GenerateRequest,
    GenerateSettings,
    GeneratorServiceGetModelRequest,
    GeneratorServiceReadPromptRequest,
)
from triptych.v1.generator_pb2_grpc import GeneratorServiceStub, add_GeneratorServiceServicer_to_server
from triptych.v1.stage_pb2 import ImageItem, ImagePrompt, ModelInfo, TextDifference

INFO = ModelInfo(
    name="small",
    limits=ModelInfo.Limits(max_images=8, max_prompt_bytes=200),
    defaults={"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 3.0, **COMMON_DEFAULTS},
    ranges={**RANGES, **COMMON_RANGES},
)

VOCABULARY = Vocabulary(
    {"house": "houses", "cat": "cats"},
    {"cottage": ("house", 0.8)},
    ("a red house", "two cats", "a cat", "a house"),
)


@pytest.fixture
async def stub(model):
    stepper = GeneratorStepper(model, num_slots=2)
    loaded_model = LoadedGenerator(stepper, INFO, read_request, partial(measure_prompt, model), VOCABULARY)
    async with serving_stage(
        GeneratorService(), add_GeneratorServiceServicer_to_server, SERVICE_NAME, loaded_model, max_queue=8
    ) as channel:
        yield GeneratorServiceStub(channel)


def request(*seeds, prompt="a red house", **settings):
    items = [ImageItem(index=10 + i, seed=seed) for i, seed in enumerate(seeds)]
    return GenerateRequest(prompt=prompt, images=items, settings=GenerateSettings(**settings))


async def events_of(stub, sent):
    return [response.event async for response in stub.Generate(sent)]


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(image.data))).astype(int)


# The tokens of this model are bytes, with a space before the first, and a start and an end.
@pytest.mark.parametrize(("prompt", "num_tokens"), [("two cats", None), ("a red house", 14)])
async def test_a_prompt_that_is_longer_than_the_context_is_drawn_with_a_warning(stub, prompt, num_tokens):
    events = await events_of(stub, request(7, 8, prompt=prompt))
    warnings = {event.warning.message for event in events if event.HasField("warning")}
    assert sum(event.HasField("image") for event in events) == 2
    expected = f"prompt: the generator reads 12 text tokens and this has {num_tokens}; its end has no effect"
    assert warnings == ({expected} if num_tokens else set())


async def test_each_picture_comes_under_its_index_with_its_seed(stub, model):
    events = await events_of(stub, request(7, 2**64 - 1, 9, top_k=5))
    images = {event.image.index: event.image for event in events if event.HasField("image")}
    assert {index: image.seed for index, image in images.items()} == {10: 7, 11: 2**64 - 1, 12: 9}
    for image in images.values():
        (expected,) = generate(
            model, ["a red house"], [image.seed], sampling=SamplingDefaults(top_k=5, guidance_scale=3.0)
        )
        np.testing.assert_allclose(decoded(image.image), expected, atol=1)


async def test_previews_come_when_they_are_asked_for(stub):
    # So small a network may have finished a picture before its preview is made, which is then left out.
    for seed in range(200):
        kinds = [event.WhichOneof("kind") for event in await events_of(stub, request(seed, preview_every=5))]
        assert kinds[0] == "accepted"
        assert kinds[-2:] == ["image", "timing"]
        if "preview" in kinds:
            break
    else:
        pytest.fail("no picture had a preview")
    assert "preview" not in [event.WhichOneof("kind") for event in await events_of(stub, request(1))]


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (request(1, prompt="  "), "prompt"),
        (request(1, prompt="x" * 201), "prompt"),
        (request(), "images"),
        (request(*range(9)), "images"),
        (request(1, temperature=0), "settings.temperature"),
        (request(1, temperature=float("nan")), "settings.temperature"),
        (request(1, top_k=-1), "settings.top_k"),
        (request(1, top_p=0), "settings.top_p"),
        (request(1, top_p=1.5), "settings.top_p"),
        (request(1, guidance_scale=-1), "settings.guidance_scale"),
        (request(1, preview_every=-1), "settings.preview_every"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_value_out_of_range_is_refused_by_name(stub, sent, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await events_of(stub, sent)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(field)


async def test_the_extremes_of_the_ranges_make_pictures(stub):
    for settings in (
        {"temperature": 0.01, "guidance_scale": 100.0},
        {"temperature": 100.0, "guidance_scale": 0.0, "top_p": 1e-9, "top_k": 1_000_000},
    ):
        events = await events_of(stub, request(1, **settings))
        assert events[-1].HasField("timing")


async def test_what_is_loaded_can_be_asked_for(stub):
    response = await stub.GetModel(GeneratorServiceGetModelRequest())
    assert response.model == INFO


async def picture_of(stub, prompt):
    events = await events_of(stub, request(7, prompt=prompt))
    (image,) = [event.image.image.data for event in events if event.HasField("image")]
    return image


async def test_a_word_that_the_model_does_not_know_is_drawn_as_its_replacement(stub):
    assert await picture_of(stub, "a red cottage") == await picture_of(stub, "a red house")


async def test_what_is_drawn_for_a_prompt_can_be_asked(stub):
    asked = GeneratorServiceReadPromptRequest(prompt="a red cottage")
    reading = (await stub.ReadPrompt(asked)).reading
    assert (reading.prompt, reading.is_unknown) == ("a red house", False)
    assert [(one.word, one.replacement) for one in reading.replacements] == [("cottage", "house")]


async def test_an_unknown_prompt_is_answered_with_others(stub):
    reading = (await stub.ReadPrompt(GeneratorServiceReadPromptRequest(prompt="qwerty"))).reading
    assert reading.is_unknown
    assert len(reading.suggestions) == 3
    assert reading.prompt in VOCABULARY.example_prompts


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"image_prompts": [ImagePrompt()]}, "image_prompts"),
        ({"text_difference": TextDifference(source="a cat", target="a lion")}, "text_difference"),
        ({"settings": GenerateSettings(prior_num_steps=4)}, "settings.prior_num_steps"),
    ],
)
def test_what_another_family_takes_is_refused_by_the_name_of_the_field(more, field):
    sent = GenerateRequest(prompt="a red house", images=[ImageItem(index=0)], **more)
    with pytest.raises(InvalidRequest) as refused:
        read_request(sent, INFO)
    assert refused.value.field == field
