"""The order of a caller's waiting runs: runs in turn, moved, kept by the journal, and nobody else's business."""

import pytest

from gateway.access.caller import Caller
from services.errors import InvalidRequest, NotFound, RunNotQueued
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import MoveRunRequest, RunState, SelectImagesRequest

SKETCHES = {"refine": None, "upscale": None}
ANN, BOB = Caller("ann"), Caller("bob")
QUEUED = [RunState.RUN_STATE_QUEUED]


async def begin(gateway, caller=ANN, *, in_turn=True):
    return (await gateway.facade.create_run("", spec(**SKETCHES), caller, in_turn=in_turn)).name


async def move(gateway, name, caller=ANN, **to):
    return await gateway.facade.move_run(MoveRunRequest(name=name, **to), caller)


async def waiting(gateway, caller=ANN):
    """Names of those that wait, in the order in which they will begin."""
    runs, _ = await gateway.facade.list_runs(caller, states=QUEUED)
    return [run.name for run in sorted(runs, key=lambda run: run.queue_order)]


async def order_of_beginning(gateway, names):
    """The runs by the time at which they began, once all are done."""
    runs = [await run_finished(gateway, name) for name in names]
    return [run.name for run in sorted(runs, key=lambda run: run.start_time.ToNanoseconds())]


@pytest.fixture
async def held():
    """A gateway where the first sketch of every run waits for its gate."""
    async with pipeline() as gateway:
        gateway.generator.close_gates(0)
        yield gateway
        gateway.generator.gates[0].set()


def let_go(gateway):
    gateway.generator.gates[0].set()


async def test_runs_in_turn_begin_one_after_another(held):
    names = [await begin(held) for _ in range(3)]
    assert await waiting(held) == names[1:]
    assert (await held.facade.get_run(names[0], ANN)).queue_order == 0
    let_go(held)
    assert await order_of_beginning(held, names) == names


async def test_a_run_in_turn_holds_up_neither_other_callers_nor_ordinary_runs(held):
    first, second = [await begin(held) for _ in range(2)]
    ordinary, other = await begin(held, in_turn=False), await begin(held, BOB)
    assert await waiting(held) == [second]
    assert await waiting(held, BOB) == []
    let_go(held)
    await order_of_beginning(held, [first, second, ordinary, other])


async def test_a_waiting_run_is_moved_before_and_after_others_and_to_the_front(held):
    first, a, b, c = [await begin(held) for _ in range(4)]
    await move(held, c, before=a)
    assert await waiting(held) == [c, a, b]
    await move(held, c, after=b)
    assert await waiting(held) == [a, b, c]
    moved = await move(held, b)
    assert moved.queue_order > 0
    assert await waiting(held) == [b, a, c]
    let_go(held)
    assert await order_of_beginning(held, [first, a, b, c]) == [first, b, a, c]


async def test_a_waiting_run_begins_now_beside_the_one_under_way(held):
    first, a, b = [await begin(held) for _ in range(3)]
    run = await move(held, b, now=True)
    assert run.queue_order == 0
    await held.generator.begun[0].wait()
    assert await waiting(held) == [a]
    let_go(held)
    assert await order_of_beginning(held, [first, a, b]) == [first, b, a]


async def test_a_cancelled_run_leaves_the_queue_and_the_next_one_moves_up(held):
    first, a, b = [await begin(held) for _ in range(3)]
    await held.facade.cancel_run(a, ANN)
    assert await waiting(held) == [b]
    await held.facade.cancel_run(first, ANN)
    let_go(held)
    assert (await run_finished(held, b)).state == RunState.RUN_STATE_SUCCEEDED


async def test_only_waiting_runs_of_the_caller_can_be_moved_and_named(held):
    first, a = [await begin(held) for _ in range(2)]
    await begin(held, BOB)
    bobs = await begin(held, BOB)
    with pytest.raises(NotFound):
        await move(held, bobs)
    with pytest.raises(InvalidRequest, match="must be another run of the same caller") as others:
        await move(held, a, before=bobs)
    with pytest.raises(InvalidRequest) as absent:
        await move(held, a, before=bobs[:-1] + "x")
    # Somebody else's run looks as one that is not there.
    assert others.value.field == absent.value.field == "before"
    with pytest.raises(InvalidRequest):
        await move(held, a, after=a)
    with pytest.raises(RunNotQueued):
        await move(held, first)
    assert await waiting(held) == [a]


async def test_a_selection_does_not_wait_for_runs_in_turn(held):
    let_go(held)
    done = await begin(held)
    await run_finished(held, done)
    held.generator.close_gates(0)
    first, a = [await begin(held) for _ in range(2)]
    selection = SelectImagesRequest.Selection(image=f"{done}/images/generate-0", upscale={})
    await held.facade.select_images("", done, [selection], ANN)
    assert (await run_finished(held, done)).state == RunState.RUN_STATE_SUCCEEDED
    assert await waiting(held) == [a]
    let_go(held)
    await order_of_beginning(held, [first, a])


async def test_the_order_is_kept_by_a_restart(tmp_path):
    async with scripted_stages() as stages:
        stages.generators[0].close_gates(0)
        async with gateway_over(stages, tmp_path) as gateway:
            first, a, b, c = [await begin(gateway) for _ in range(4)]
            await move(gateway, c)
        async with gateway_over(stages, tmp_path) as gateway:
            assert await waiting(gateway) == [c, a, b]
            await move(gateway, a, after=b)
            later = await begin(gateway)
            stages.generators[0].gates[0].set()
            names = [first, a, b, c, later]
            assert await order_of_beginning(gateway, names) == [first, c, b, a, later]
            assert await waiting(gateway, ALL) == []
