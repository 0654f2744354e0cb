"""Images taken to a stage, at any time."""

from tests.gateway.fake_stage import image, png
from tests.gateway.run_fixtures import collect, finished, kinds, ready, spec, warnings
from tests.gateway.selecting import (
    MANUAL,
    automatic_run,
    manual_run,
    select,
    selection,
    short,
    until_it_rests,
)
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import Stage


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


async def test_several_selections_of_one_request_are_reported_with_their_indexes(gateway):
    name, _ = await manual_run(gateway)
    first = selection(f"{name}/images/generate-0", refine={"count": 1})
    second = selection(f"{name}/images/generate-1", refine={"count": 2})
    third = selection(f"{name}/images/generate-1", upscale={})
    events = await select(gateway, name, first, second, third)
    reported = [(choice.model.stage, list(choice.indexes)) for choice in events[0].selected.choices]
    assert reported == [(2, [0]), (2, [1, 2]), (3, [0])]
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


async def test_the_same_selection_under_another_request_id_makes_new_images(gateway):
    name = await automatic_run(gateway)
    choice = selection(f"{name}/images/refine-0", upscale={})
    made = [short(one.name for one in ready(await select(gateway, name, choice))) for _ in range(2)]
    assert made == [["upscale-1"], ["upscale-2"]]


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


async def test_a_model_that_is_served_no_more_is_replaced_and_reported(gateway):
    name = await automatic_run(gateway)
    gateway.upscaler.info.digest = "d2"
    await gateway.notice()
    events = await select(gateway, name, selection(f"{name}/images/refine-0", upscale={}))
    assert [one.reason for one in warnings(events)] == ["MODEL_CHANGED"]
    assert ready(events)[0].model_digest == "d2"


async def test_the_first_event_states_the_models_of_the_run(gateway):
    events = await collect(gateway, spec())
    reported = [(model.stage, model.name, model.digest) for model in events[0].state.models]
    assert reported == [(stage, "scripted", "d1") for stage in (1, 2, 3)]
