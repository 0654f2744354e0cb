"""Choosing by hand through the client: which images go on, and what follows from it."""

import pytest

from tests.gateway.fake_stage import pipeline
from tests.gateway.run_fixtures import spec
from tests.relay import relay
from triptych._reconnect import Backoff
from triptych._selection import image_names, selected_stage
from triptych.client import Client, InvalidRequest, RequestIdReused
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import RefineStage, RunState, SelectImagesRequest, UpscaleStage

SMALL = {"candidates": 3, "variations": 2, "seed": 100}


@pytest.fixture
async def gateway():
    async with pipeline() as running:
        yield running


async def test_a_run_by_hand_goes_from_choice_to_choice(gateway):
    sketched = await gateway.client.run(make_spec("a red house", manual=True, **SMALL))
    assert (sketched.state, len(sketched.sketches), len(sketched.pictures)) == ("awaiting_selection", 3, 3)

    refined = await gateway.client.select(sketched.sketches[2], refine=2)
    assert (refined.state, len(refined.variations)) == ("awaiting_selection", 2)
    assert {each.parent for each in refined.pictures} == {sketched.sketches[2].name}
    assert (refined.name, refined.prompt, refined.seed) == (sketched.name, "a red house", 100)

    upscaled = await gateway.client.select(refined.variations[1], upscale=True)
    assert (upscaled.state, len(upscaled.upscaled)) == ("succeeded", 1)
    assert upscaled.pictures[0].parent == refined.variations[1].name


async def test_watching_a_run_by_hand_goes_past_the_choices_that_were_made(gateway):
    first = await gateway.client.run(make_spec("a red house", manual=True, **SMALL))
    await gateway.client.select(first.sketches[0], refine=2)
    watched = await gateway.client.watch(first.name)
    assert (watched.state, len(watched.pictures)) == ("awaiting_selection", 5)
    assert [each.name for each in watched.pictures if each.is_chosen] == [first.sketches[0].name]


async def test_images_of_a_finished_run_can_be_taken_further(gateway):
    first = await gateway.client.run(spec(upscale=None))
    more = await gateway.client.select(first.variations, upscale=True)
    assert more.state == "succeeded"
    assert [each.parent for each in more.pictures] == [each.name for each in first.variations]


async def test_going_back_to_a_sketch_makes_more_variations_of_it(gateway):
    first = await gateway.client.run(spec())
    more = await gateway.client.select(first.sketches[0], refine=3)
    assert [each.index for each in more.variations] == [2, 3, 4]


async def test_choosing_while_the_run_is_followed_continues_the_same_stream(gateway):
    stages, run = [], gateway.client.run(make_spec("a red house", manual=True, **SMALL))
    async for event in run:
        if event.HasField("selection_required"):
            image = run.result.of_stage(["generate", "refine"][len(stages)])[0]
            stage = [{"refine": RefineStage(count=1)}, {"upscale": UpscaleStage()}][len(stages)]
            stages.append(image.stage)
            selection = SelectImagesRequest.Selection(image=image.name, **stage)
            await gateway.client.select_images(run.result.name, [selection])
    assert stages == ["generate", "refine"]
    assert run.result.state == "succeeded"


async def test_a_manual_run_survives_the_client_that_began_it(gateway):
    gateway.generator.close_gates(0)
    async with gateway.client.run(make_spec("a red house", manual=True, **SMALL)) as run:
        await anext(aiter(run))
    gateway.generator.gates[0].set()
    assert (await gateway.client.watch(run.result.name)).state == "awaiting_selection"


async def test_a_selection_is_made_once_over_a_network_that_breaks(gateway):
    first = await gateway.client.run(spec(upscale=None))
    gateway.upscaler.picture_bytes = 30_000
    async with (
        relay(gateway.address, seed=3, num_cuts=4) as between,
        Client(between.address, backoff=Backoff(first_s=0.01, longest_s=0.05)) as client,
    ):
        more = await client.select(first.pictures[:1] + first.variations, upscale=True)
    assert between.num_cuts == 4
    assert len(more.pictures) == len(gateway.upscaler.requests) == 3


async def test_the_same_request_id_with_other_images_is_refused(gateway):
    first = await gateway.client.run(spec(upscale=None))
    await gateway.client.select(first.variations[0], upscale=True, request_id="once")
    with pytest.raises(RequestIdReused):
        await gateway.client.select(first.variations[1], upscale=True, request_id="once")


async def test_what_cannot_be_selected_is_refused_by_the_gateway_in_words(gateway):
    first = await gateway.client.run(spec())
    with pytest.raises(InvalidRequest, match="refine.count"):
        await gateway.client.select(first.sketches[0], refine=10_000)
    assert (await gateway.client.get_run(first.name)).state == RunState.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("images", [[], ["generate-0"], ["runs/1/images/a-0", "runs/2/images/a-0"]])
def test_images_are_of_one_run(images):
    with pytest.raises(ValueError, match="expected images of one run"):
        image_names(images)


@pytest.mark.parametrize(("refine", "upscale"), [(None, False), (2, True)])
def test_images_go_to_one_stage(refine, upscale):
    with pytest.raises(ValueError, match="expected one of"):
        selected_stage(refine, upscale)


def test_a_stage_can_be_named_by_its_message():
    assert selected_stage(RefineStage(count=2), False) == {"refine": RefineStage(count=2)}
    assert selected_stage(None, UpscaleStage()) == {"upscale": UpscaleStage()}
