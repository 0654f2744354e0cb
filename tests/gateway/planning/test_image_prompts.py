"""Image prompts in runs, and generators of two families behind one gateway."""

import hashlib

import pytest

from tests.gateway.fake_stage import SIDE_PX, gateway_over, image, png, scripted_stages
from tests.gateway.run_fixtures import ALL, collect, finished, ready, run_finished, spec
from triptych.errors import InvalidRequest
from triptych.v1.pipeline_pb2 import RunSpec, RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import ImagePrompt, ModelInfo


def prompted(*weights, prompt="", **more):
    """Two sketches of mixtures of pictures, by unCLIP."""
    asked = RunSpec(prompt=prompt, seed=100, **more)
    asked.generate.count = 2
    asked.generate.model = "drawing"
    for place, weight in enumerate(weights):
        asked.generate.image_prompts.append(ImagePrompt(image=image(place), weight=weight))
    return asked


def two_families(stages):
    """The first generator is DALL-E's, the second draws from pictures."""
    words, drawing = stages.generators
    words.info.CopyFrom(
        ModelInfo(
            name="words", digest="w1", stage=words.stage.number, architecture="dalle",
            defaults={"temperature": 1, "guidance_scale": 1},
        )
    )  # fmt: skip
    drawing.info.CopyFrom(
        ModelInfo(
            name="drawing", digest="u1", stage=words.stage.number, architecture="unclip",
            limits=ModelInfo.Limits(max_image_prompts=4), defaults={"prior_num_steps": 25, "guidance_scale": 8},
        )
    )  # fmt: skip
    return stages


@pytest.fixture
async def stages():
    async with scripted_stages(generators=2) as running:
        yield two_families(running)


@pytest.fixture
async def gateway(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as running:
        yield running


async def refused(gateway, asked):
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.create_run(asked)
    ((field, description),) = raised.value.violations.items()
    return field, description


async def test_image_prompts_come_to_the_generator_that_can_see_them(gateway):
    events = await collect(gateway, prompted(1, 3))
    words, drawing = gateway.generators
    assert words.requests == []
    for request in drawing.requests:
        assert [one.image.data for one in request.image_prompts] == [png(0), png(1)]
        assert [one.weight for one in request.image_prompts] == [1, 3]
    assert {one.model_name for one in ready(events)} == {"drawing"}
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_the_run_reports_its_image_prompts_by_their_hashes(gateway):
    events = await collect(gateway, prompted(1))
    run = await gateway.facade.get_run(events[0].state.run, ALL)
    (told,) = run.spec.generate.image_prompts
    assert told.image.sha256 == hashlib.sha256(png(0)).hexdigest()
    assert told.image.data == b""
    assert (told.image.width, told.image.height) == (SIDE_PX, SIDE_PX)


async def test_a_run_that_goes_on_after_a_restart_has_its_image_prompts(stages, tmp_path):
    drawing = stages.generators[1]
    drawing.close_gates(0, 1)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.client.create_run(prompted(1))
        await drawing.begun[0].wait()
    num_before = len(drawing.requests)
    drawing.gates[0].set()
    drawing.gates[1].set()
    async with gateway_over(stages, tmp_path) as gateway:
        whole = await run_finished(gateway, run.name)
    assert whole.state == RunState.RUN_STATE_SUCCEEDED
    again = drawing.requests[num_before:]
    assert again
    assert {one.image_prompts[0].image.data for one in again} == {png(0)}


async def test_a_text_difference_comes_to_the_generator(gateway):
    asked = prompted(1)
    asked.generate.text_difference.source, asked.generate.text_difference.target = "a cat", "a lion"
    await collect(gateway, asked)
    assert gateway.generators[1].requests[0].text_difference == asked.generate.text_difference


async def test_each_stage_may_name_a_model_of_its_own(gateway):
    asked = spec(generate={"count": 1, "model": "words"}, refine=None, automatic={"top_k_after_generate": 0})
    asked.upscale.model = "scripted"
    events = await collect(gateway, asked)
    assert [one.model_name for one in ready(events)] == ["words", "scripted"]


async def test_a_sketch_goes_to_a_stage_that_serves_another_model(gateway):
    asked = prompted(prompt="a red house")
    asked.refine.count = 1
    asked.refine.model = "scripted"
    events = await collect(gateway, asked)
    assert {one.model_name for one in ready(events)} == {"drawing", "scripted"}


async def test_a_selection_may_name_a_model(gateway):
    events = await collect(gateway, prompted(1, manual={}))
    choice = SelectImagesRequest.Selection(image=ready(events)[0].name, upscale={"model": "nope"})
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.select_images(events[0].state.run, [choice])
    assert "selections[0].upscale.model" in raised.value.violations


async def test_without_a_prompt_nothing_is_ranked(gateway):
    asked = prompted(1)
    asked.upscale.SetInParent()
    events = await collect(gateway, asked)
    assert gateway.refiner.rank_requests == []
    assert len(ready(events)) == 4


@pytest.mark.parametrize(
    ("change", "field", "complaint"),
    [
        ({"model": "words"}, "spec.generate.image_prompts", "'words' cannot see pictures"),
        ({"model": "nope"}, "spec.generate.model", "no generator serves 'nope'; served: drawing, words"),
        ({"settings": {"temperature": 1}}, "spec.generate.settings.temperature", "has no such setting"),
    ],
)
async def test_what_the_model_cannot_take_is_refused_by_name(gateway, change, field, complaint):
    asked = prompted(1, prompt="a house")
    asked.generate.MergeFrom(type(asked.generate)(**change))
    found, description = await refused(gateway, asked)
    assert (found, complaint in description) == (field, True)


async def test_five_pictures_are_too_many(gateway):
    assert await refused(gateway, prompted(1, 1, 1, 1, 1)) == (
        "spec.generate.image_prompts",
        "must be at most 4, got 5",
    )


async def test_weights_of_0_alone_are_refused(gateway):
    field, _ = await refused(gateway, prompted(0, 0))
    assert field == "spec.generate.image_prompts"


async def test_what_is_no_picture_is_refused(gateway):
    asked = prompted(1)
    asked.generate.image_prompts[0].image.data = b"GIF89a"
    field, _ = await refused(gateway, asked)
    assert field == "spec.generate.image_prompts[0].image.data"


async def test_refining_needs_a_prompt(gateway):
    asked = prompted(1)
    asked.refine.count = 1
    field, _ = await refused(gateway, asked)
    assert field == "spec.prompt"
