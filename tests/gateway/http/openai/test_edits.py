"""POST /v1/images/edits and /v1/images/variations, called by the unmodified `openai` package."""

import base64

import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent

from tests.gateway.fake_stage import png
from tests.gateway.http.painting import pixels
from tests.gateway.planning.test_masks import MASK, mask_file
from triptych.png_text import with_text

# Of OpenAI's own service; the package still calls it.
RETIRED = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def decoded(item) -> bytes:
    return base64.b64decode(item.b64_json)


async def test_an_edit_begins_with_the_picture(painter):
    answer = await painter.openai.images.edit(image=png(3), prompt="a blue house", extra_body={"seed": 7})
    (request,) = painter.gateway.refiner.requests
    assert (request.init_image.data, request.prompt) == (png(3), "a blue house")
    assert decoded(answer.data[0]) == png(7)


async def test_an_edit_of_a_file(painter, tmp_path):
    path = tmp_path / "house.png"
    path.write_bytes(png(3))
    with path.open("rb") as file:
        await painter.openai.images.edit(image=file, prompt="x")
    assert painter.gateway.refiner.requests[0].init_image.data == png(3)


async def test_a_list_of_one_picture_is_that_picture(painter):
    await painter.openai.images.edit(image=[png(3)], prompt="x")
    assert painter.gateway.refiner.requests[0].init_image.data == png(3)


async def test_n_edits(painter):
    answer = await painter.openai.images.edit(image=png(3), prompt="x", n=3, size="32x32")
    assert [pixels(decoded(item)).shape for item in answer.data] == [(32, 32, 3)] * 3
    assert answer.usage.input_tokens_details.image_tokens == 1


async def test_our_settings_ride_in_the_form(painter):
    extra = {"seed": 5, "steps": 4, "skip_ratio": 0.25, "stages": ["refine", "upscale"]}
    answer = await painter.openai.images.edit(image=png(3), prompt="x", extra_body=extra)
    request = painter.gateway.refiner.requests[0]
    assert (request.settings.num_steps, request.settings.skip_ratio) == (4, 0.25)
    assert (request.images[0].seed, answer.size) == (5, "32x32")


async def test_an_edit_streams_partial_images_that_converge(painter):
    events = await painter.openai.images.edit(
        image=png(3), prompt="x", stream=True, partial_images=3, extra_body={"seed": 7}
    )
    seen = [event async for event in events]
    kinds = [ImageEditPartialImageEvent] * 3 + [ImageEditCompletedEvent]
    assert [type(event) for event in seen] == kinds
    for event in seen:
        type(event).model_validate(event.model_dump(), strict=True)
    *shown, final = [pixels(base64.b64decode(event.b64_json)) for event in seen]
    distances = [float(np.abs(picture - final).mean()) for picture in shown]
    assert distances[0] > distances[1] > distances[2] > 0


async def test_with_a_mask_a_part_of_the_picture_is_made_anew(painter):
    answer = await painter.openai.images.edit(image=png(3), mask=MASK, prompt="a blue door", n=2)
    for request in painter.gateway.refiner.requests:
        assert (request.init_image.data, request.mask.data) == (png(3), MASK)
        assert not request.settings.HasField("skip_ratio")
    assert len(answer.data) == 2


async def test_a_mask_from_a_file(painter, tmp_path):
    (tmp_path / "mask.png").write_bytes(MASK)
    with (tmp_path / "mask.png").open("rb") as file:
        await painter.openai.images.edit(image=png(3), mask=file, prompt="x")
    assert painter.gateway.refiner.requests[0].mask.data == MASK


async def test_an_edit_without_a_mask_redraws_the_whole_picture(painter):
    await painter.openai.images.edit(image=png(3), prompt="x")
    assert not painter.gateway.refiner.requests[0].HasField("mask")


async def test_an_edit_with_a_mask_streams(painter):
    events = await painter.openai.images.edit(
        image=png(3), mask=MASK, prompt="x", stream=True, partial_images=2
    )
    assert [event.type async for event in events] == ["image_edit.partial_image"] * 2 + [
        "image_edit.completed"
    ]


async def test_a_key_with_the_same_picture_and_mask_makes_one_run(painter):
    for _ in range(2):
        await painter.openai.images.edit(
            image=png(3), mask=MASK, prompt="x", extra_headers={"Idempotency-Key": "door-1"}
        )
    assert len(painter.gateway.refiner.requests) == 1


async def test_a_key_with_another_mask_is_refused(painter):
    key = {"Idempotency-Key": "door-1"}
    await painter.openai.images.edit(image=png(3), mask=MASK, prompt="x", extra_headers=key)
    with pytest.raises(openai.ConflictError):
        await painter.openai.images.edit(image=png(3), mask=mask_file(), prompt="x", extra_headers=key)


async def test_where_the_model_cannot_inpaint_a_mask_is_refused_with_its_name(painter):
    painter.gateway.refiner.info.ClearField("inpainting")
    await painter.gateway.notice()
    with pytest.raises(openai.BadRequestError, match="'tiny' cannot inpaint") as raised:
        await painter.openai.images.edit(image=png(3), mask=MASK, prompt="x")
    assert raised.value.param == "mask"


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (png(4), "alpha channel"),
        (b"GIF89a", "alpha channel"),
        (b"", "alpha channel"),
        (mask_file(16, opaque=255), "the size of the picture, 8x8, got 16x16"),
        (MASK[:-30], "damaged or cut short"),
        (MASK + bytes(4 * 2**20), "at most 4194304 bytes"),
    ],
    ids=["without an alpha", "no PNG", "nothing", "of another size", "cut short", "too large"],
)
async def test_what_is_no_mask_of_the_picture_is_a_bad_request(painter, mask, complaint):
    with pytest.raises(openai.BadRequestError, match=complaint) as raised:
        await painter.openai.images.edit(image=png(3), mask=mask, prompt="x")
    assert raised.value.param == "mask"
    assert painter.gateway.refiner.requests == []


@pytest.mark.parametrize(
    "files", [[("mask", (None, "a text"))], [("mask", ("a.png", MASK)), ("mask", ("b.png", MASK))]]
)
async def test_a_mask_must_be_one_file(painter, files):
    sent = [("image", ("house.png", png(3))), ("prompt", (None, "x")), *files]
    answer = await painter.http.post("/v1/images/edits", files=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask")


async def test_a_variation_has_no_mask(painter):
    sent = [("image", ("house.png", png(3))), ("mask", ("mask.png", MASK))]
    answer = await painter.http.post("/v1/images/variations", files=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mask")


async def test_several_pictures_are_refused_where_no_model_takes_image_prompts(painter):
    with pytest.raises(openai.BadRequestError, match=r"no model that takes any is served \(tiny\); got 2"):
        await painter.openai.images.edit(image=[png(3), png(4)], prompt="x")


async def test_of_several_pictures_the_first_counts_as_much_as_the_others(painter):
    (generator,) = painter.gateway.generators
    generator.info.limits.max_image_prompts = 4
    await painter.gateway.notice()
    pictures = [png(3), png(4), png(5)]
    answer = await painter.openai.images.edit(image=pictures, prompt="a blue house", n=2)
    request = generator.requests[0]
    assert request.prompt == "a blue house"
    assert [one.image.data for one in request.image_prompts] == pictures
    assert [one.weight for one in request.image_prompts] == [1, 0.5, 0.5]
    assert (len(answer.data), answer.usage.input_tokens_details.image_tokens) == (2, 3)
    assert painter.gateway.refiner.requests == []


@pytest.mark.parametrize(
    ("pictures", "more", "param", "complaint"),
    [
        ([png(3)] * 5, {}, "image", "at most 4 pictures for 'tiny', got 5"),
        ([png(3), b"GIF89a"], {}, "image", "PNG, JPEG, WebP"),
        ([png(3), png(4)], {"mask": MASK}, "mask", "left out with several pictures"),
        ([png(3), png(4)], {"extra_body": {"skip_ratio": 0.5}}, "skip_ratio", "none is begun with"),
    ],
    ids=["too many", "no picture", "a mask", "a share to keep"],
)
async def test_what_cannot_be_mixed_is_a_bad_request(painter, pictures, more, param, complaint):
    painter.gateway.generators[0].info.limits.max_image_prompts = 4
    await painter.gateway.notice()
    with pytest.raises(openai.BadRequestError, match=complaint) as raised:
        await painter.openai.images.edit(image=pictures, prompt="x", **more)
    assert raised.value.param == param


async def test_a_file_that_is_no_picture_is_refused(painter):
    with pytest.raises(openai.BadRequestError, match="PNG, JPEG, WebP") as raised:
        await painter.openai.images.edit(image=b"GIF89a", prompt="x")
    assert raised.value.param == "image"


async def test_an_edit_without_a_picture_is_refused(painter):
    answer = await painter.http.post("/v1/images/edits", files={"prompt": (None, "x")})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "image"


@RETIRED
async def test_a_variation_needs_no_prompt(painter):
    answer = await painter.openai.images.create_variation(image=png(3), n=2, extra_body={"seed": 7})
    assert sorted(item.seed for item in answer.data) == [7, 8]
    assert {request.init_image.data for request in painter.gateway.refiner.requests} == {png(3)}


@RETIRED
async def test_a_variation_of_a_picture_of_ours_knows_its_prompt(painter):
    made = await painter.openai.images.generate(prompt="a red house")
    kept = (await painter.http.get(f"/{made.data[0].image}")).content
    await painter.openai.images.create_variation(image=kept)
    assert painter.gateway.refiner.requests[1].prompt == "a red house"


@RETIRED
async def test_what_other_programs_wrote_into_a_picture_is_no_prompt(painter):
    theirs = with_text(png(3), {"prompt": '{"nodes": []}'})
    await painter.openai.images.create_variation(image=theirs)
    assert painter.gateway.refiner.requests[0].prompt == "a picture"


@RETIRED
async def test_a_variation_by_url(painter):
    answer = await painter.openai.images.create_variation(
        image=png(3), response_format="url", extra_body={"seed": 7}
    )
    assert (await painter.http.get(answer.data[0].url)).content == png(7)


async def test_without_a_refiner_an_edit_explains_what_is_missing(painter):
    await painter.gateway.refiner.kill()
    await painter.gateway.notice()
    with pytest.raises(openai.InternalServerError, match="no refiner serves") as raised:
        await painter.openai.with_options(max_retries=0).images.edit(image=png(3), prompt="x")
    assert raised.value.status_code == 503


@RETIRED
async def test_a_variation_is_drawn_anew_where_a_generator_sees_pictures(painter):
    generator = painter.gateway.generators[0]
    generator.info.limits.max_image_prompts = 4
    await painter.gateway.notice()
    answer = await painter.openai.images.create_variation(image=png(3), n=2)
    assert len(answer.data) == 2
    assert painter.gateway.refiner.requests == []
    assert {one.image_prompts[0].image.data for one in generator.requests} == {png(3)}
    assert {one.prompt for one in generator.requests} == {""}


async def test_how_much_of_a_picture_a_variation_keeps_is_the_refiners(painter):
    painter.gateway.generators[0].info.limits.max_image_prompts = 4
    await painter.gateway.notice()
    sent = [("image", ("house.png", png(3))), ("skip_ratio", (None, "0.6"))]
    await painter.http.post("/v1/images/variations", files=sent)
    assert painter.gateway.generators[0].requests == []
    assert painter.gateway.refiner.requests[0].init_image.data == png(3)
