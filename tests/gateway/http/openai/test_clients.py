"""What programs written for OpenAI send without configuration gives a picture, whatever sizes the stages make."""

import base64
import gzip
import io
import json
import zlib

import numpy as np
import openai
import pytest
from PIL import Image

from gateway.http.openai.models import OPENAI_MODELS
from gateway.http.openai.uploads import read_picture
from services.errors import InvalidRequest
from services.serving.limits.request_checks import cut_prompt
from tests.gateway.fake_stage import png
from tests.gateway.http.conftest import web_gateway
from tests.gateway.http.painting import pixels, set_up

OPENAI_SIZES = ["256x256", "512x512", "1024x1024", "1792x1024", "1024x1792", "1536x1024", "1024x1536", "auto"]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(params=[(128, 8), (256, 4), (64, 2)], ids=["128/1024", "256/1024", "64/128"])
async def ladder(request):
    """Stages that make such sizes, native and upscaled."""
    side, scale = request.param
    async with web_gateway() as web:
        await set_up(web.gateway)
        for stage in (web.gateway.generator, web.gateway.refiner):
            stage.info.image_size = stage.side = side
        web.gateway.upscaler.info.scale, web.gateway.upscaler.side = scale, side * scale
        await web.gateway.notice()
        yield web


@pytest.mark.parametrize("size", OPENAI_SIZES)
async def test_every_size_of_openai_gives_a_picture_of_that_size(ladder, size):
    answer = await ladder.openai.images.generate(prompt="x", model="gpt-image-1", size=size)
    picture = opened(base64.b64decode(answer.data[0].b64_json))
    assert answer.size == "x".join(str(side) for side in picture.size)
    if size != "auto":
        assert answer.size == size


async def test_the_nearest_size_that_the_stages_make_is_taken():
    async with web_gateway() as web:
        await set_up(web.gateway)
        for stage in (web.gateway.generator, web.gateway.refiner):
            stage.info.image_size = stage.side = 256
        web.gateway.upscaler.side = 1024
        await web.gateway.notice()
        for size, num_enlarged in [("256x256", 0), ("300x300", 0), ("512x512", 1), ("1792x1024", 1)]:
            web.gateway.upscaler.requests.clear()
            await web.openai.images.generate(prompt="x", model="dall-e-3", size=size)
            assert (size, len(web.gateway.upscaler.requests)) == (size, num_enlarged)


async def test_another_shape_is_cut_from_the_middle_and_not_squeezed(painter):
    columns = np.zeros((32, 32, 3), np.uint8)
    columns[:4], columns[-4:], columns[4:-4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(columns).save(file, "PNG")
    from gateway.http.image_files.image_formats import convert

    cut = pixels(await convert(file.getvalue(), "png", 100, (64, 32)))
    assert cut.shape == (32, 64, 3)
    # The bars above and below are an eighth each, and half of the height is cut.
    assert (cut.reshape(-1, 3) == (0, 0, 255)).all()


@pytest.mark.parametrize("model", [*OPENAI_MODELS, "gpt-image-7", "openai/dall-e-3"])
async def test_a_model_of_openai_is_known_wherever_it_can_be_asked_for(painter, model):
    assert (await painter.openai.models.retrieve(model)).id == model
    assert (await painter.openai.images.generate(prompt="x", model=model)).data


@pytest.mark.parametrize(
    ("model", "has_url", "has_b64"),
    [
        ("dall-e-2", True, False),
        ("dall-e-3", True, False),
        ("gpt-image-1", False, True),
        ("tiny", False, True),
    ],
)
async def test_each_model_answers_as_at_openai_by_default(painter, model, has_url, has_b64):
    (item,) = (await painter.openai.images.generate(prompt="x", model=model)).data
    assert (item.url is not None, item.b64_json is not None) == (has_url, has_b64)


async def test_without_a_model_both_answers_are_there(painter):
    (item,) = (await painter.openai.images.generate(prompt="x", extra_body={"seed": 7})).data
    assert (await painter.http.get(item.url)).content == base64.b64decode(item.b64_json) == png(7)


async def test_a_link_leads_to_the_size_that_was_asked_for(painter):
    answer = await painter.openai.images.generate(prompt="x", model="dall-e-3", size="64x48")
    got = await painter.http.get(answer.data[0].url)
    assert (opened(got.content).size, answer.size) == ((64, 48), "64x48")
    changed = await painter.http.get(answer.data[0].url.replace("64x48", "999x999"))
    assert changed.status_code == 403


async def test_a_long_prompt_is_cut_and_said(painter):
    prompt = "red house " * 1_200
    answer = await painter.openai.images.generate(prompt=prompt, model="gpt-image-1")
    drawn = painter.gateway.generator.requests[0].prompt
    assert prompt.startswith(drawn)
    assert len(drawn) <= 2_000
    assert answer.data[0].revised_prompt == drawn
    assert "reads at most 2000 bytes" in answer.warnings[0]


async def test_a_prompt_beyond_openai_s_lengths_is_refused(painter):
    with pytest.raises(openai.BadRequestError, match="at most 32000 characters"):
        await painter.openai.images.generate(prompt="x" * 32_001, model="gpt-image-1")


@pytest.mark.parametrize(
    ("prompt", "max_bytes", "cut"),
    [
        ("a red house", 20, "a red house"),
        ("a red house", 8, "a red"),
        ("ééééé", 5, "éé"),
        ("a red house", 5, "a red"),
    ],
)
def test_a_prompt_is_cut_at_a_word_and_never_in_a_character(prompt, max_bytes, cut):
    assert cut_prompt(prompt, max_bytes) == cut


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": "ultra"},
        {"style": "vivid", "moderation": "low", "input_fidelity": "high"},
        {"background": "transparent"},
        {"output_compression": 50},
        {"partial_images": 2},
        {"a_parameter_of_next_year": {"deep": [1, 2]}},
        {"n": 1.0, "output_compression": 100.0},
        {"n": "1.0"},
        {"size": "", "quality": None, "user": "", "response_format": "", "stream": None},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
    ],
    ids=str,
)
async def test_what_openai_accepts_gives_a_picture(painter, fields):
    body = {"prompt": "x", "model": "gpt-image-1", **fields}
    answer = await painter.http.post("/v1/images/generations", json=body)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1)


async def test_what_has_no_effect_is_said(painter):
    fields = {"background": "transparent", "quality": "ultra", "hue": 3}
    answer = await painter.openai.images.generate(prompt="x", model="gpt-image-1", extra_body=fields)
    assert {warning.partition(":")[0] for warning in answer.warnings} == set(fields)


async def test_a_stream_under_openai_s_names_carries_its_pictures(painter):
    events = await painter.openai.images.generate(
        prompt="x", model="dall-e-3", stream=True, size="64x64", partial_images=1, response_format="url"
    )
    seen = [event async for event in events]
    assert {opened(base64.b64decode(event.b64_json)).size for event in seen} == {(64, 64)}
    assert {event.size for event in seen} == {"64x64"}


@pytest.mark.parametrize(
    "pictures",
    [
        {"image": data_url(png(3))},
        {"image": [data_url(png(3))]},
        {"image": base64.b64encode(png(3)).decode()},
        {"images": [{"image_url": data_url(png(3))}]},
        {"images": [{"type": "input_image", "image_url": {"url": data_url(png(3))}}]},
    ],
    ids=["data URL", "list", "base64", "image_url", "nested"],
)
async def test_an_edit_in_json(painter, pictures):
    answer = await painter.http.post(
        "/v1/images/edits", json={"prompt": "x", "model": "gpt-image-1", **pictures}
    )
    assert answer.status_code == 200
    assert painter.gateway.refiner.requests[0].init_image.data == png(3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("https://example.com/a.png", "links are not fetched"),
        ({"file_id": "file-123"}, "no files are kept"),
        ("data:image/png,plain", "must be a data URL in base64"),
        ("data:image/png;base64,%%%", "must be base64"),
        (7, "must be a picture as a data URL"),
        ({}, "must be a picture as a data URL"),
    ],
)
def test_what_is_no_picture_in_json_is_said(value, words):
    with pytest.raises(InvalidRequest, match=words):
        read_picture(value, "image")


async def test_a_picture_s_own_transparency_is_its_mask(painter):
    half = np.full((8, 8, 4), 255, np.uint8)
    half[:, :4, 3] = 0
    file = io.BytesIO()
    Image.fromarray(half).save(file, "PNG")
    await painter.openai.images.edit(image=file.getvalue(), prompt="x", model="dall-e-2")
    mask = painter.gateway.refiner.requests[0].mask
    repainted = np.asarray(opened(mask.data).convert("L")) < 128
    assert repainted[:, :4].all()
    assert not repainted[:, 4:].any()


async def test_where_the_model_cannot_inpaint_transparency_is_said_to_be_lost(painter):
    painter.gateway.refiner.info.ClearField("inpainting")
    await painter.gateway.notice()
    file = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(file, "PNG")
    answer = await painter.openai.images.edit(image=file.getvalue(), prompt="x", model="gpt-image-1")
    assert "transparent parts are put on white" in answer.warnings[0]


@pytest.mark.parametrize("path", ["/images/generations", "/images/edits", "/v1/v1/images/generations"])
async def test_a_base_url_that_is_wrong_is_explained(painter, path):
    answer = await painter.http.post(path, json={"prompt": "x"})
    assert answer.status_code == 404
    assert f"set it to {painter.url}/v1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_a_compressed_body_is_read(painter, encoding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding]
    content = pack(json.dumps({"prompt": "a red house"}).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = await painter.http.post("/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 200
    assert painter.gateway.generator.requests[0].prompt == "a red house"


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (gzip.compress(b" " * 2**24), "gzip", 413),
        (gzip.compress(b'{"prompt": "x"}')[:-9], "gzip", 400),
        (b'{"prompt": "x"}', "gzip", 400),
        (b"x", "br", 415),
        (b"x", "gzip, gzip", 415),
    ],
    ids=["bomb", "cut", "plain", "brotli", "twice"],
)
async def test_a_compressed_body_is_bounded(painter, content, encoding, status):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = await painter.http.post("/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"
