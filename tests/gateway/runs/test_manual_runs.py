"""Runs that wait after each stage for somebody to choose."""

from services.errors import DeviceOutOfMemory
from tests.gateway.run_fixtures import finished, kinds, ready, warnings
from tests.gateway.selecting import manual_run, select, selection, short
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import Stage


async def test_a_manual_run_waits_after_its_first_stage(gateway):
    name, events = await manual_run(gateway)
    assert kinds(events)[-2:] == ["selection_required", "state"]
    required = events[-2].selection_required
    assert required.next_stage == Stage.STAGE_REFINE
    assert short(required.candidates) == ["generate-0", "generate-1"]
    assert (await gateway.client.get_run(name)).state == RunState.RUN_STATE_AWAITING_SELECTION
    assert gateway.refiner.requests == []


async def test_a_caller_who_chooses_by_hand_is_given_the_scores(gateway):
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


async def test_a_manual_run_of_one_stage_asks_nothing(gateway):
    _, events = await manual_run(gateway, refine=None, upscale=None)
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_manual_run_whose_first_stage_fails_has_failed(gateway):
    gateway.generator.errors = {0: KeyError("x"), 1: KeyError("x")}
    name, events = await manual_run(gateway)
    assert finished(events).state == RunState.RUN_STATE_FAILED


async def test_a_selection_that_fails_leaves_the_choice_to_a_manual_run(gateway):
    name, _ = await manual_run(gateway)
    gateway.refiner.errors[0] = KeyError("x")
    events = await select(gateway, name, selection(f"{name}/images/generate-0", refine={"count": 1}))
    assert [one.given_up for one in warnings(events)] == [True]
    assert short(events[-2].selection_required.candidates) == ["generate-0", "generate-1"]


async def test_cancelling_a_run_that_waits_keeps_its_pictures(gateway):
    name, _ = await manual_run(gateway)
    run = await gateway.client.cancel_run(name)
    assert run.state == RunState.RUN_STATE_CANCELLED
    assert len(run.images) == 2
