"""What an automatic run does, seen by its caller and by the stages."""

import hashlib

import pytest

from gateway.runs.flow import CREDITS
from tests.gateway.fake_stage import image, png
from tests.gateway.run_fixtures import collect, finished, kinds, ready, spec
from triptych.v1.pipeline_pb2 import RunSpec, RunState
from triptych.v1.stage_pb2 import Stage


async def test_a_prompt_becomes_sketches_variations_and_an_enlarged_picture(gateway):
    events = await collect(gateway, spec())
    names = [one.name.rpartition("/")[2] for one in ready(events)]
    assert sorted(names) == ["generate-0", "generate-1", "refine-0", "refine-1", "upscale-0"]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_prompt_alone_is_the_article_s_flow(gateway):
    events = await collect(gateway, RunSpec(prompt="a red house"))
    counts = [len(ready(events, stage)) for stage in (1, 2, 3)]
    assert counts == [8, 8, 1]


async def test_the_first_event_states_the_run_and_the_whole_spec(gateway):
    events = await collect(gateway, RunSpec(prompt="a red house", generate={}))
    reported = events[0].state
    assert reported.state == RunState.RUN_STATE_QUEUED
    assert reported.run.startswith("runs/")
    assert reported.spec.prompt == "a red house"
    assert reported.spec.HasField("seed")
    assert reported.spec.generate.count == 8


async def test_sequence_numbers_have_no_gap(gateway):
    gateway.generator.num_previews = 5
    name = (await collect(gateway, spec()))[0].state.run
    logged = [event.sequence for event in await gateway.runs.journal.reader.read_log(name)]
    assert logged == list(range(1, len(logged) + 1))
    assert (await gateway.client.get_run(name)).last_sequence == len(logged)


async def test_an_image_comes_between_its_stage_s_start_and_its_timing(gateway):
    events = await collect(gateway, spec(refine=None, upscale=None, generate={"count": 1}))
    order = [kind for kind in kinds(events) if kind != "preview"]
    assert order == ["state", "state", "stage_started", "progress", "image_ready", "timing", "finished"]


async def test_images_say_what_they_are(gateway):
    events = await collect(gateway, spec())
    variation = next(one for one in ready(events) if one.name.endswith("refine-1"))
    assert variation.parent.endswith("images/generate-0")
    assert variation.seed == 101
    assert variation.sha256 == hashlib.sha256(variation.data).hexdigest()
    assert variation.data == png(101)
    assert (variation.width, variation.height, variation.mime_type) == (8, 8, "image/png")
    assert (variation.model_name, variation.model_digest) == ("scripted", "d1")


async def test_the_best_sketch_by_clip_goes_on(gateway):
    gateway.refiner.scores = {100: 0.1, 101: 0.9}
    events = await collect(gateway, spec())
    ranked = next(event.ranked for event in events if event.HasField("ranked"))
    assert [score.image.rpartition("/")[2] for score in ranked.scores] == ["generate-1", "generate-0"]
    assert [round(score.clip_score, 3) for score in ranked.scores] == [0.9, 0.1]
    assert [name.rpartition("/")[2] for name in ranked.selected] == ["generate-1"]
    assert {one.parent.rpartition("/")[2] for one in ready(events, Stage.STAGE_REFINE)} == {"generate-1"}


async def test_equal_scores_go_on_in_the_order_of_the_indexes(gateway):
    gateway.generator.close_gates(0)

    async def open_late():
        await gateway.generator.begun[0].wait()
        gateway.generator.gates[0].set()

    events = []
    async for event in gateway.client.stream_run(spec(upscale=None)):
        events.append(event)
        if event.HasField("image_ready"):
            await open_late()
    assert ready(events)[0].index == 1  # the first to finish
    assert {one.parent.rpartition("/")[2] for one in ready(events, Stage.STAGE_REFINE)} == {"generate-0"}


async def test_the_run_remembers_the_scores(gateway):
    gateway.refiner.scores = {100: 0.25}
    name = (await collect(gateway, spec()))[0].state.run
    run = await gateway.client.get_run(name)
    by_name = {one.name.rpartition("/")[2]: one for one in run.images}
    assert by_name["generate-0"].clip_score == 0.25
    assert not by_name["upscale-0"].HasField("clip_score")


async def test_each_child_has_an_index_and_a_seed_of_its_own(gateway):
    automatic = {"top_k_after_generate": 2, "top_k_after_refine": 0}
    gateway.refiner.scores = {101: 1.0}
    events = await collect(gateway, spec(automatic=automatic, upscale=None))
    children = {
        one.index: (one.parent.rpartition("-")[2], one.seed) for one in ready(events, Stage.STAGE_REFINE)
    }
    assert children == {0: ("1", 100), 1: ("1", 101), 2: ("0", 102), 3: ("0", 103)}


async def test_children_are_numbered_by_their_parent_where_all_go_on(gateway):
    automatic = {"top_k_after_generate": 0, "top_k_after_refine": 0}
    gateway.generator.close_gates(0)
    events = []
    async for event in gateway.client.stream_run(spec(automatic=automatic, upscale=None)):
        events.append(event)
        if len(ready(events, Stage.STAGE_REFINE)) == 2:
            gateway.generator.gates[0].set()
    children = {one.index: one.parent.rpartition("-")[2] for one in ready(events, Stage.STAGE_REFINE)}
    assert children == {0: "0", 1: "0", 2: "1", 3: "1"}


async def test_where_all_go_on_the_next_stage_begins_before_the_last_one_ends(gateway):
    automatic = {"top_k_after_generate": 0, "top_k_after_refine": 0}
    gateway.generator.close_gates(1)
    stages = []
    async for event in gateway.client.stream_run(spec(automatic=automatic)):
        if event.HasField("image_ready"):
            stages.append(event.image_ready.image.stage)
            if event.image_ready.image.stage == Stage.STAGE_UPSCALE:
                gateway.generator.gates[1].set()
    assert Stage.STAGE_UPSCALE in stages[: stages.index(Stage.STAGE_GENERATE, 1)]


async def test_nothing_is_ranked_where_all_go_on(gateway):
    await collect(gateway, spec(automatic={"top_k_after_generate": 0, "top_k_after_refine": 0}))
    assert gateway.refiner.rank_requests == []


async def test_a_seed_wraps_at_the_end_of_its_range(gateway):
    asked = spec(refine=None, upscale=None)
    asked.seed = 2**64 - 1
    assert {one.index: one.seed for one in ready(await collect(gateway, asked))} == {0: 2**64 - 1, 1: 0}


async def test_an_unset_seed_is_drawn_once_and_echoed(gateway):
    asked = spec(refine=None, upscale=None)
    asked.ClearField("seed")
    events = await collect(gateway, asked)
    drawn = events[0].state.spec.seed
    assert {one.seed for one in ready(events)} == {drawn, drawn + 1}


async def test_variations_share_the_init_seed_of_the_run(gateway):
    await collect(gateway, spec())
    assert {request.init_seed for request in gateway.refiner.requests} == {100}


async def test_settings_reach_their_stage(gateway):
    asked = spec()
    asked.generate.settings.temperature = 0.5
    asked.refine.settings.negative_prompt = "blurry"
    asked.upscale.settings.tile_size = 64
    await collect(gateway, asked)
    assert gateway.generator.requests[0].settings.temperature == 0.5
    assert gateway.refiner.requests[0].settings.negative_prompt == "blurry"
    assert gateway.upscaler.requests[0].settings.tile_size == 64


async def test_a_run_can_start_from_pictures(gateway):
    asked = spec(generate=None)
    asked.init_images.append(image(7))
    events = await collect(gateway, asked)
    assert {one.parent.rpartition("/")[2] for one in ready(events, Stage.STAGE_REFINE)} == {"init-0"}
    assert gateway.refiner.requests[0].init_image.data == png(7)
    assert gateway.generator.requests == []


async def test_init_images_are_echoed_without_their_data(gateway):
    asked = spec(generate=None)
    asked.init_images.append(image(7))
    reported = (await collect(gateway, asked))[0].state.spec.init_images[0]
    assert (reported.width, reported.height, reported.data) == (8, 8, b"")


@pytest.mark.parametrize(
    "stages", [("generate",), ("refine",), ("generate", "refine"), ("generate", "upscale")]
)
async def test_any_stage_may_be_left_out(gateway, stages):
    asked = spec(**{stage: None for stage in ("generate", "refine", "upscale") if stage not in stages})
    events = await collect(gateway, asked)
    made = {one.name.rpartition("/")[2].rpartition("-")[0] for one in ready(events)}
    assert made == set(stages)
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_pictures_alone_can_be_enlarged_without_a_prompt(gateway):
    asked = RunSpec(init_images=[image(1), image(2)], upscale={})
    events = await collect(gateway, asked)
    assert sorted(one.parent.rpartition("/")[2] for one in ready(events)) == ["init-0", "init-1"]


async def test_sketches_are_ranked_without_a_next_stage_where_that_is_asked_for(gateway):
    gateway.refiner.scores = {101: 0.5}
    asked = spec(refine=None, upscale=None, automatic={"top_k_after_generate": 1})
    events = await collect(gateway, asked)
    ranked = next(event.ranked for event in events if event.HasField("ranked"))
    assert [name.rpartition("/")[2] for name in ranked.selected] == ["generate-1"]


async def test_a_slow_stage_holds_back_the_one_before(gateway):
    asked = spec(generate={"count": 64}, refine=None, automatic={"top_k_after_generate": 0})
    gateway.upscaler.close_gates(*range(64))
    held_back = 2 * CREDITS  # so many are being upscaled, and so many sketches wait for that
    num_sketches, num_asked = 0, None
    async for event in gateway.client.stream_run(asked):
        if event.HasField("image_ready") and event.image_ready.image.stage == Stage.STAGE_GENERATE:
            num_sketches += 1
        if num_sketches == held_back and num_asked is None:
            for _ in range(20):  # the gateway has time for whatever it would ask for next
                await gateway.client.list_models()
            num_asked = len(gateway.generator.requests)
            for gate in gateway.upscaler.gates.values():
                gate.set()
    assert num_asked == held_back
    assert len(gateway.upscaler.finished) == 64
