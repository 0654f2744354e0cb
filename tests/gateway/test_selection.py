"""Choosing by hand: manual runs, and images taken to a stage at any time."""

import pytest

from services.errors import DeviceOutOfMemory
from tests.gateway.runs_as_seen import collect, finished, kinds, ready, spec
from tests.gateway.scripted import image, pipeline, png
from triptych.errors import InvalidRequest, NotFound, NoWorker, RequestIdReused
from triptych.v1.pipeline_pb2 import RunSpec, RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import Stage

MANUAL = {"manual": {}}


def selection(name, **stage):
    return SelectImagesRequest.Selection(image=name, **stage)


async def manual_run(gateway, **more):
    """A run that waits for its first choice: its name, and its events so far."""
    run = await gateway.client.create_run(spec(**MANUAL, **more))
    return run.name, await until_it_rests(gateway, run.name)


async def automatic_run(gateway, **more):
    return (await collect(gateway, spec(**more)))[0].state.run


async def until_it_rests(gateway, name, after_sequence=0):
    """Its events from there to where it finishes or waits for a choice."""
    events = []
    async for event in gateway.client.watch_run(name, after_sequence=after_sequence):
        events.append(event)
        if event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
            break
    return events


async def select(gateway, name, *selections, request_id=""):
    """The events that a selection leads to."""
    before = (await gateway.client.get_run(name)).last_sequence
    await gateway.client.select_images(name, selections, request_id=request_id)
    return await until_it_rests(gateway, name, before)


def short(names):
    return [name.rpartition("/")[2] for name in names]


async def refused(gateway, name, *selections):
    """The field that is refused, and why."""
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.select_images(name, selections)
    ((field, description),) = raised.value.violations.items()
    return field, description


async def test_a_manual_run_waits_after_its_first_stage(gateway):
    name, events = await manual_run(gateway)
    assert kinds(events)[-2:] == ["selection_required", "state"]
    required = events[-2].selection_required
    assert required.next_stage == Stage.STAGE_REFINE
    assert short(required.candidates) == ["generate-0", "generate-1"]
    assert (await gateway.client.get_run(name)).state == RunState.RUN_STATE_AWAITING_SELECTION
    assert gateway.refiner.requests == []


async def test_whoever_chooses_by_hand_is_told_the_scores(gateway):
    gateway.refiner.scores = {100: 0.25, 101: 0.75}
    name, events = await manual_run(gateway)
    ranked = next(event.ranked for event in events if event.HasField("ranked"))
    assert short([score.image for score in ranked.scores]) == ["generate-1", "generate-0"]
    assert [score.clip_score for score in ranked.scores] == [0.75, 0.25]
    assert list(ranked.selected) == []
    scores = {image.index: image.clip_score for image in (await gateway.client.get_run(name)).images}
    assert scores == {0: 0.25, 1: 0.75}


async def test_a_manual_run_waits_for_its_choice_also_without_scores(gateway):
    gateway.refiner.rank_error = DeviceOutOfMemory("no room for the pictures")
    _, events = await manual_run(gateway)
    warning = next(event.warning for event in events if event.HasField("warning"))
    assert (warning.reason, warning.given_up) == ("DEVICE_OOM", False)
    assert kinds(events)[-2:] == ["selection_required", "state"]


async def test_what_is_selected_goes_on_and_the_run_waits_again(gateway):
    name, _ = await manual_run(gateway)
    events = await select(gateway, name, selection(f"{name}/images/generate-1", refine={}))
    assert kinds(events)[:2] == ["selected", "state"]
    assert sorted((one.name.rpartition("/")[2], one.parent.rpartition("/")[2]) for one in ready(events)) == [
        ("refine-0", "generate-1"),
        ("refine-1", "generate-1"),
    ]
    assert events[-2].selection_required.next_stage == Stage.STAGE_UPSCALE
    assert short(events[-2].selection_required.candidates) == ["refine-0", "refine-1"]


async def test_a_manual_run_succeeds_once_its_last_stage_has_a_picture(gateway):
    name, _ = await manual_run(gateway)
    await select(gateway, name, selection(f"{name}/images/generate-1", refine={}))
    events = await select(gateway, name, selection(f"{name}/images/refine-0", upscale={}))
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert short(one.name for one in ready(events)) == ["upscale-0"]


async def test_a_stage_may_be_skipped_by_hand(gateway):
    name, _ = await manual_run(gateway)
    events = await select(gateway, name, selection(f"{name}/images/generate-0", upscale={}))
    assert ready(events)[0].parent == f"{name}/images/generate-0"
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_finished_run_goes_on_when_images_are_selected(gateway):
    name = await automatic_run(gateway)
    events = await select(gateway, name, selection(f"{name}/images/generate-1", refine={"count": 1}))
    order = [kind for kind in kinds(events) if kind not in ("preview", "progress")]
    assert order == ["selected", "state", "stage_started", "image_ready", "timing", "finished"]
    assert events[1].state.state == RunState.RUN_STATE_RUNNING
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert short(one.name for one in ready(events)) == ["refine-2"]


async def test_the_run_is_open_while_it_goes_on(gateway):
    name = await automatic_run(gateway)
    gateway.refiner.close_gates(2)
    await gateway.client.select_images(name, [selection(f"{name}/images/generate-0", refine={"count": 1})])
    await gateway.refiner.begun[2].wait()
    run = await gateway.client.get_run(name)
    assert (run.state, run.HasField("end_time")) == (RunState.RUN_STATE_RUNNING, False)
    gateway.refiner.gates[2].set()


async def test_sequence_numbers_go_on_after_the_first_end(gateway):
    name = await automatic_run(gateway)
    await select(gateway, name, selection(f"{name}/images/generate-0", upscale={}))
    numbers = [
        event.sequence async for event in gateway.client.watch_run(name) if not event.HasField("preview")
    ]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == (await gateway.client.get_run(name)).last_sequence


async def test_images_are_selected_while_the_run_is_under_way(gateway):
    gateway.generator.close_gates(1)
    run = await gateway.client.create_run(spec(refine=None, upscale=None))
    async for event in gateway.client.watch_run(run.name):
        if event.image_ready.image.name.endswith("generate-0"):
            choice = selection(f"{run.name}/images/generate-0", upscale={})
            await gateway.client.select_images(run.name, [choice])
        if event.HasField("image_ready") and event.image_ready.image.stage == Stage.STAGE_UPSCALE:
            gateway.generator.gates[1].set()
    made = short(one.name for one in (await gateway.client.get_run(run.name)).images)
    assert sorted(made) == ["generate-0", "generate-1", "upscale-0"]


async def test_children_go_on_after_the_highest_index_of_their_stage(gateway):
    name = await automatic_run(gateway)
    for expected in (["refine-2", "refine-3"], ["refine-4", "refine-5"]):
        events = await select(gateway, name, selection(f"{name}/images/generate-0", refine={}))
        assert sorted(short(one.name for one in ready(events))) == expected
    assert {one.index: one.seed for one in ready(events)} == {4: 104, 5: 105}


async def test_the_images_that_a_running_stage_will_make_keep_their_indexes(gateway):
    gateway.refiner.close_gates(0, 1)
    run = await gateway.client.create_run(spec(upscale=None))
    await gateway.refiner.begun[1].wait()
    await gateway.client.select_images(
        run.name, [selection(f"{run.name}/images/generate-0", refine={"count": 1})]
    )
    await gateway.refiner.begun[2].wait()
    for gate in gateway.refiner.gates.values():
        gate.set()
    await until_it_rests(gateway, run.name)
    images = (await gateway.client.get_run(run.name)).images
    assert sorted(one.index for one in images if one.stage == Stage.STAGE_REFINE) == [0, 1, 2]


async def test_several_selections_of_one_request_are_told_with_their_indexes(gateway):
    name, _ = await manual_run(gateway)
    first = selection(f"{name}/images/generate-0", refine={"count": 1})
    second = selection(f"{name}/images/generate-1", refine={"count": 2})
    third = selection(f"{name}/images/generate-1", upscale={})
    events = await select(gateway, name, first, second, third)
    told = [(choice.model.stage, list(choice.indexes)) for choice in events[0].selected.choices]
    assert told == [(2, [0]), (2, [1, 2]), (3, [0])]
    assert len(ready(events)) == 4


async def test_a_selection_has_settings_of_its_own_over_those_of_the_run(gateway):
    asked = spec(**MANUAL)
    asked.refine.settings.num_steps = 30
    asked.refine.settings.skip_ratio = 0.5
    run = await gateway.client.create_run(asked)
    await until_it_rests(gateway, run.name)
    choice = selection(f"{run.name}/images/generate-0", refine={"count": 1})
    choice.refine.settings.skip_ratio = 0.25
    await select(gateway, run.name, choice)
    settings = gateway.refiner.requests[0].settings
    assert (settings.num_steps, settings.skip_ratio) == (30, 0.25)


async def test_an_image_may_go_back(gateway):
    name = await automatic_run(gateway)
    events = await select(gateway, name, selection(f"{name}/images/upscale-0", refine={"count": 1}))
    assert ready(events)[0].parent == f"{name}/images/upscale-0"


async def test_an_init_image_may_be_selected(gateway):
    asked = spec(generate=None, **MANUAL)
    asked.init_images.append(image(7))
    run = await gateway.client.create_run(asked)
    await until_it_rests(gateway, run.name)
    await select(gateway, run.name, selection(f"{run.name}/images/init-0", upscale={}))
    assert gateway.upscaler.requests[0].images[0].image.data == png(7)


async def test_a_stage_that_the_spec_left_out_can_be_selected(gateway):
    name = await automatic_run(gateway, refine=None, upscale=None)
    events = await select(gateway, name, selection(f"{name}/images/generate-0", refine={"count": 1}))
    assert short(one.name for one in ready(events)) == ["refine-0"]


async def test_the_same_request_id_selects_once(gateway):
    name, _ = await manual_run(gateway)
    choice = selection(f"{name}/images/generate-0", upscale={})
    await select(gateway, name, choice, request_id="once")
    again = await gateway.client.select_images(name, [choice], request_id="once")
    assert again == await gateway.client.get_run(name)
    assert len(gateway.upscaler.requests) == 1


async def test_the_same_request_id_for_another_selection_is_refused(gateway):
    name, _ = await manual_run(gateway)
    await select(gateway, name, selection(f"{name}/images/generate-0", upscale={}), request_id="once")
    with pytest.raises(RequestIdReused, match="selected other images") as raised:
        await gateway.client.select_images(
            name, [selection(f"{name}/images/generate-1", upscale={})], request_id="once"
        )
    assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_the_same_selection_under_another_request_id_makes_new_images(gateway):
    name = await automatic_run(gateway)
    choice = selection(f"{name}/images/refine-0", upscale={})
    made = [short(one.name for one in ready(await select(gateway, name, choice))) for _ in range(2)]
    assert made == [["upscale-1"], ["upscale-2"]]


@pytest.mark.parametrize(
    ("choices", "field", "description"),
    [
        ([], "selections", "must name at least one image"),
        ([("generate-0", {})], "selections[0]", "must say where the image goes: refine or upscale"),
        ([("generate-9", {"upscale": {}})], "selections[0].image", "must be a finished image of runs/"),
        ([("upscale-0", {"upscale": {}})], "selections[0].image", "must not be enlarged already"),
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
    gateway.refiner.info.limits.max_num_steps = 30
    await gateway.notice()
    name = await automatic_run(gateway)
    before = await gateway.client.get_run(name)
    said = await refused(
        gateway, name, *(selection(f"{name}/images/{one}", **stage) for one, stage in choices)
    )
    assert said[0] == field
    assert description in said[1]
    assert await gateway.client.get_run(name) == before


async def test_an_image_of_another_run_is_refused(gateway):
    name, other = await automatic_run(gateway), await automatic_run(gateway)
    field, _ = await refused(gateway, name, selection(f"{other}/images/generate-0", upscale={}))
    assert field == "selections[0].image"


async def test_an_image_that_was_given_up_says_why(gateway):
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


async def test_a_selection_of_which_too_few_steps_are_left_is_refused(gateway):
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


async def test_cancelling_a_run_that_waits_keeps_its_pictures(gateway):
    name, _ = await manual_run(gateway)
    run = await gateway.client.cancel_run(name)
    assert run.state == RunState.RUN_STATE_CANCELLED
    assert len(run.images) == 2


async def test_a_cancelled_run_goes_on_with_what_is_selected_and_nothing_else(gateway):
    gateway.generator.close_gates(1)
    run = await gateway.client.create_run(spec())
    async for event in gateway.client.watch_run(run.name):
        if event.HasField("image_ready"):
            await gateway.client.cancel_run(run.name)
    events = await select(gateway, run.name, selection(f"{run.name}/images/generate-0", upscale={}))
    assert short(one.name for one in ready(events)) == ["upscale-1"]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert len(gateway.generator.requests) == 2


async def test_a_selected_image_can_be_cancelled(gateway):
    name = await automatic_run(gateway)
    gateway.refiner.close_gates(2)
    await gateway.client.select_images(name, [selection(f"{name}/images/generate-0", refine={})])
    await gateway.refiner.begun[2].wait()
    await gateway.client.cancel_run(name, [f"{name}/images/refine-2"])
    await until_it_rests(gateway, name)
    made = short(one.name for one in (await gateway.client.get_run(name)).images)
    assert "refine-3" in made
    assert "refine-2" not in made


async def test_a_selection_that_fails_leaves_the_choice_to_a_manual_run(gateway):
    name, _ = await manual_run(gateway)
    gateway.refiner.errors[0] = KeyError("x")
    events = await select(gateway, name, selection(f"{name}/images/generate-0", refine={"count": 1}))
    assert [event.warning.given_up for event in events if event.HasField("warning")] == [True]
    assert short(events[-2].selection_required.candidates) == ["generate-0", "generate-1"]


async def test_a_selection_that_fails_leaves_a_finished_run_partly_succeeded(gateway):
    name = await automatic_run(gateway)
    gateway.refiner.errors[2] = KeyError("x")
    events = await select(gateway, name, selection(f"{name}/images/generate-0", refine={"count": 1}))
    assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED
    assert finished(events).error.reason == "INTERNAL"


async def test_an_earlier_failure_is_not_that_of_a_later_selection(gateway):
    gateway.generator.errors[1] = KeyError("x")
    name = await automatic_run(gateway, refine=None, upscale=None)
    events = await select(gateway, name, selection(f"{name}/images/generate-0", upscale={}))
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_manual_run_whose_first_stage_fails_has_failed(gateway):
    gateway.generator.errors = {0: KeyError("x"), 1: KeyError("x")}
    name, events = await manual_run(gateway)
    assert finished(events).state == RunState.RUN_STATE_FAILED


async def test_a_manual_run_of_one_stage_asks_nothing(gateway):
    _, events = await manual_run(gateway, refine=None, upscale=None)
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_model_that_is_served_no_more_is_replaced_and_told(gateway):
    name = await automatic_run(gateway)
    gateway.upscaler.info.digest = "d2"
    await gateway.notice()
    events = await select(gateway, name, selection(f"{name}/images/refine-0", upscale={}))
    assert [event.warning.reason for event in events if event.HasField("warning")] == ["MODEL_CHANGED"]
    assert ready(events)[0].model_digest == "d2"


async def test_the_first_event_says_the_models_of_the_run(gateway):
    events = await collect(gateway, spec())
    told = [(model.stage, model.name, model.digest) for model in events[0].state.models]
    assert told == [(stage, "scripted", "d1") for stage in (1, 2, 3)]
