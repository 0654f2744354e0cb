"""Selections that cannot be served."""

import pytest

from tests.gateway.fake_stage import image, pipeline
from tests.gateway.run_fixtures import collect
from tests.gateway.selecting import (
    automatic_run,
    manual_run,
    refused,
    select,
    selection,
)
from triptych.errors import InvalidRequest, NotFound, NoWorker, RequestIdReused
from triptych.v1.pipeline_pb2 import RunSpec, RunState


@pytest.mark.parametrize(
    ("choices", "field", "description"),
    [
        ([], "selections", "must name at least one image"),
        ([("generate-0", {})], "selections[0]", "must say where the image goes: refine or upscale"),
        ([("generate-9", {"upscale": {}})], "selections[0].image", "must be a finished image of runs/"),
        ([("upscale-0", {"upscale": {}})], "selections[0].image", "must not be upscaled already"),
        ([("init-0", {"upscale": {}})], "selections[0].image", "must be a finished image of runs/"),
        (
            [("generate-0", {"upscale": {}}), ("generate-0", {"refine": {"count": 65}})],
            "selections[1].refine.count",
            "must be 1 to 64, got 65",
        ),
        ([("generate-0", {"refine": {"count": 40}})] * 2, "selections[1].refine", "at most 64 pictures"),
        (
            [("generate-0", {"refine": {"settings": {"skip_ratio": 2}}})],
            "selections[0].refine.settings.skip_ratio",
            "below 1, got 2",
        ),
        (
            [("generate-0", {"refine": {"settings": {"num_steps": 31}}})],
            "selections[0].refine.settings.num_steps",
            "must be 1 to 30, got 31",
        ),
    ],
)
async def test_a_selection_that_cannot_be_served_is_refused(gateway, choices, field, description):
    gateway.refiner.info.ranges["num_steps"].highest = 30
    await gateway.notice()
    name = await automatic_run(gateway)
    before = await gateway.client.get_run(name)
    refusal = await refused(
        gateway, name, *(selection(f"{name}/images/{one}", **stage) for one, stage in choices)
    )
    assert refusal[0] == field
    assert description in refusal[1]
    assert await gateway.client.get_run(name) == before


async def test_the_same_request_id_for_another_selection_is_refused(gateway):
    name, _ = await manual_run(gateway)
    await select(gateway, name, selection(f"{name}/images/generate-0", upscale={}), request_id="once")
    with pytest.raises(RequestIdReused, match="selected other images") as raised:
        await gateway.client.select_images(
            name, [selection(f"{name}/images/generate-1", upscale={})], request_id="once"
        )
    assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_an_image_of_another_run_is_refused(gateway):
    name, other = await automatic_run(gateway), await automatic_run(gateway)
    field, _ = await refused(gateway, name, selection(f"{other}/images/generate-0", upscale={}))
    assert field == "selections[0].image"


async def test_an_image_that_was_given_up_explains_why(gateway):
    gateway.generator.errors[1] = KeyError("x")
    name = await automatic_run(gateway, refine=None, upscale=None)
    _, description = await refused(gateway, name, selection(f"{name}/images/generate-1", upscale={}))
    assert "was given up (INTERNAL)" in description


async def test_a_run_without_a_prompt_cannot_be_refined(gateway):
    events = await collect(gateway, RunSpec(init_images=[image(1)], upscale={}))
    name = events[0].state.run
    field, description = await refused(gateway, name, selection(f"{name}/images/init-0", refine={}))
    assert (field, description[:14]) == ("selections[0].refine", "needs a prompt")


async def test_a_picture_beyond_the_limit_of_its_stage_is_refused(gateway):
    gateway.upscaler.info.limits.max_image_pixels = 63
    await gateway.notice()
    name = await automatic_run(gateway, refine=None, upscale=None)
    with pytest.raises(InvalidRequest, match="at most 63 pixels for upscale, got 8x8") as raised:
        await gateway.client.select_images(name, [selection(f"{name}/images/generate-0", upscale={})])
    assert raised.value.reason == "IMAGE_TOO_LARGE"


async def test_a_stage_that_nobody_serves_is_refused_before_anything_begins():
    async with pipeline(upscalers=0) as gateway:
        name = await automatic_run(gateway, upscale=None)
        with pytest.raises(NoWorker):
            await gateway.client.select_images(name, [selection(f"{name}/images/generate-0", upscale={})])
        assert (await gateway.client.get_run(name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_picture_that_is_too_large_to_be_enlarged_in_one_piece_is_not_selected_for_it(gateway):
    gateway.upscaler.info.limits.max_tile_size = 8
    await gateway.notice()
    name, _ = await manual_run(gateway)
    asked = selection(f"{name}/images/generate-0", upscale={"settings": {"tile_size": 0}})
    field, description = await refused(gateway, name, asked)
    assert field == "selections[0].upscale.settings.tile_size"
    assert "with pictures of 8x8: in one piece they would be tiles of 9x9" in description


async def test_a_selection_with_too_few_steps_left_is_refused(gateway):
    model = gateway.refiner.info
    model.ranges["num_steps"].lowest, model.ranges["num_steps"].highest = 4, 1000
    model.defaults["skip_ratio"] = 0.76
    await gateway.notice()
    name, _ = await manual_run(gateway)
    asked = selection(f"{name}/images/generate-0", refine={"settings": {"num_steps": 10}})
    field, description = await refused(gateway, name, asked)
    assert field == "selections[0].refine.settings.skip_ratio"
    assert "must leave at least 4 of 10 steps" in description


async def test_a_selection_of_a_run_that_is_not_there_is_not_found(gateway):
    with pytest.raises(NotFound):
        await gateway.client.select_images(
            "runs/none", [selection("runs/none/images/generate-0", upscale={})]
        )
