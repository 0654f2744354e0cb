"""POST /v1/images/generations, called by the unmodified `openai` package."""

import asyncio
import base64
import io

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.gateway.fake_stage import image, png
from tests.gateway.http.painting import pixels
from triptych.v1.stage_pb2 import ModelInfo, PromptReading, StageEvent, WordReplacement


def decoded(item) -> bytes:
    return base64.b64decode(item.b64_json)


async def test_a_prompt_becomes_a_picture(painter):
    answer = await painter.openai.images.generate(prompt="a red house", extra_body={"seed": 7})
    (item,) = answer.data
    assert decoded(item) == png(7)
    assert (answer.size, answer.output_format, answer.background) == ("8x8", "png", "opaque")


async def test_the_synchronous_client_gets_the_same(painter):
    def ask():
        with openai.OpenAI(base_url=f"{painter.url}/v1", api_key="none") as client:
            return client.images.generate(prompt="a red house", extra_body={"seed": 7})

    answer = await asyncio.to_thread(ask)
    assert decoded(answer.data[0]) == png(7)


async def test_n_pictures_have_seeds_of_their_own(painter):
    answer = await painter.openai.images.generate(prompt="x", n=4, extra_body={"seed": 7})
    assert sorted(item.seed for item in answer.data) == [7, 8, 9, 10]
    assert [decoded(item) for item in answer.data] == [png(item.seed) for item in answer.data]


async def test_the_best_picture_comes_first_with_its_score(painter):
    painter.gateway.refiner.scores = {7: 0.25, 8: 0.5}
    answer = await painter.openai.images.generate(prompt="x", n=2, extra_body={"seed": 7})
    assert [(item.seed, item.score) for item in answer.data] == [(8, 0.5), (7, 0.25)]


async def test_the_answer_names_the_run_and_its_pictures(painter):
    answer = await painter.openai.images.generate(prompt="x")
    run = (await painter.http.get(f"/{answer.run}")).json()
    assert answer.data[0].image in [one["name"] for one in run["images"]]
    assert run["spec"]["prompt"] == "x"


async def test_the_usage_counts_words_and_steps(painter):
    answer = await painter.openai.images.generate(prompt="a red house")
    # Twelve steps of the sketch, twelve of its variation.
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 24, 27)
    assert answer.usage.input_tokens_details.text_tokens == 3


async def test_a_url_leads_to_the_picture(painter):
    answer = await painter.openai.images.generate(prompt="x", response_format="url", extra_body={"seed": 7})
    assert answer.data[0].b64_json is None
    async with httpx.AsyncClient() as stranger:
        got = await stranger.get(answer.data[0].url)
    assert (got.content, got.headers["content-type"]) == (png(7), "image/png")


@pytest.mark.parametrize(("output_format", "mime_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
async def test_pictures_come_in_other_formats(painter, output_format, mime_type):
    answer = await painter.openai.images.generate(
        prompt="x", output_format=output_format, output_compression=90, extra_body={"seed": 7}
    )
    picture = Image.open(io.BytesIO(decoded(answer.data[0])))
    assert (Image.MIME[picture.format], answer.output_format) == (mime_type, output_format)
    assert np.abs(pixels(decoded(answer.data[0])) - pixels(png(7))).max() < 16


async def test_a_url_leads_to_the_format_that_was_asked_for(painter):
    answer = await painter.openai.images.generate(prompt="x", response_format="url", output_format="jpeg")
    got = await painter.http.get(answer.data[0].url)
    assert got.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(got.content)).format == "JPEG"


async def test_the_large_size_is_enlarged(painter):
    answer = await painter.openai.images.generate(prompt="x", size="32x32", n=2)
    assert answer.size == "32x32"
    assert {pixels(decoded(item)).shape for item in answer.data} == {(32, 32, 3)}


async def test_another_size_is_refused_with_those_there_are(painter):
    with pytest.raises(openai.BadRequestError) as raised:
        await painter.openai.images.generate(prompt="x", model="tiny", size="1024x1024")
    assert "8x8 and 32x32" in raised.value.message
    assert (raised.value.param, raised.value.type) == ("size", "invalid_request_error")


async def test_settings_of_ours_ride_in_the_extra_body(painter):
    extra = {"steps": 5, "guidance_scale": 2.5, "negative_prompt": "blur", "seed": 3}
    await painter.openai.images.generate(prompt="x", extra_body=extra)
    settings = painter.gateway.refiner.requests[0].settings
    assert (settings.num_steps, settings.guidance_scale, settings.negative_prompt) == (5, 2.5, "blur")
    assert painter.gateway.generator.requests[0].images[0].seed == 3


async def test_the_stages_can_be_chosen(painter):
    answer = await painter.openai.images.generate(prompt="x", extra_body={"stages": ["generate", "upscale"]})
    assert answer.size == "32x32"
    assert painter.gateway.refiner.requests == []


async def test_low_quality_is_a_sketch(painter):
    answer = await painter.openai.images.generate(prompt="x", quality="low")
    assert answer.quality == "low"
    assert painter.gateway.refiner.requests == []


async def test_high_quality_chooses_among_more_sketches(painter):
    painter.gateway.refiner.scores = {9: 0.5}
    await painter.openai.images.generate(prompt="x", quality="high", extra_body={"seed": 7})
    assert len(painter.gateway.generator.requests) == 4
    (request,) = painter.gateway.refiner.requests
    assert request.init_image.data == png(9)


async def test_without_a_refiner_pictures_are_sketches(painter):
    await painter.gateway.refiner.kill()
    await painter.gateway.notice()
    answer = await painter.openai.images.generate(prompt="x", extra_body={"seed": 7})
    assert decoded(answer.data[0]) == png(7)
    assert answer.data[0].score is None


async def test_openai_s_own_models_mean_whatever_is_served(painter):
    for model in ("gpt-image-1", "dall-e-3", "chatgpt-image-latest", "tiny"):
        answer = await painter.openai.images.generate(prompt="x", model=model)
        assert answer.data[0].model == "tiny"


async def test_a_user_comes_back_as_safety_identifier(painter):
    answer = await painter.openai.images.generate(prompt="x", user="somebody")
    assert answer.safety_identifier == "somebody"


async def test_pictures_that_failed_are_left_out_and_said(painter):
    failure = StageEvent.ImageFailure(index=1, reason="DEVICE_OOM", message="no room")
    painter.gateway.refiner.failures = {1: failure}
    answer = await painter.openai.images.generate(prompt="x", n=2)
    assert len(answer.data) == 1
    assert "no room" in answer.warnings[0]


async def test_a_picture_beyond_what_an_event_carries_comes_whole(web):
    web.gateway.generator.info.image_size = 8
    await web.gateway.notice()
    web.gateway.generator.picture_bytes = 4 * 2**20
    answer = await web.openai.images.generate(prompt="x", quality="low", extra_body={"seed": 7})
    assert decoded(answer.data[0]).startswith(image(7).data)
    assert len(decoded(answer.data[0])) > 4 * 2**20


async def test_the_revised_prompt_is_the_one_that_is_drawn(painter):
    painter.gateway.generator.info.vocabulary["things"].CopyFrom(ModelInfo.WordList(words=["cat"]))
    replaced = [WordReplacement(word="kitten", replacement="cat", similarity=0.8)]
    painter.gateway.generator.readings["a kitten"] = PromptReading(prompt="a cat", replacements=replaced)
    await painter.gateway.notice()
    answer = await painter.openai.images.generate(prompt="a kitten")
    assert answer.data[0].revised_prompt == "a cat"
