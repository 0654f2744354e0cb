"""A run that is cut off after any of its events goes on from them alone, to the same pictures, none made twice."""

import pytest

from gateway.events.run_state import CANCELLED
from gateway.planning.plan import make_plan, restore_plan
from gateway.planning.selections import Selection, assign_indexes, make_selection
from gateway.runs.admission import Admission, AdmissionLimits
from gateway.runs.flow import Flow
from gateway.runs.image_tasks import RunContext
from gateway.runs.memory_budget import WeightedSemaphore
from gateway.runs.recorder import RunRecorder, first_event
from gateway.stages import STAGES
from gateway.store import open_store
from gateway.workers.discovery import Discovery
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.targets import Target
from tests.gateway.fake_stage import scripted_stages
from tests.gateway.run_fixtures import spec
from triptych.v1.pipeline_pb2 import Event, RunState
from triptych.v1.stage_pb2 import Stage, StageEvent

FLOWING = {"automatic": {"top_k_after_generate": 0, "top_k_after_refine": 0}}
RUN = "runs/1"


class Workshop:
    """Flows over scripted stages, without a gateway around them."""

    def __init__(self, stages, pools, store):
        self.stages = stages
        self.pools = pools
        self.store = store
        self.context = RunContext(
            pools, RetryPolicy(worker_timeout_s=0), Admission(AdmissionLimits()), WeightedSemaphore(2**20)
        )

    async def begin(self, asked):
        plan = await make_plan(asked, self.pools)
        return self.record([first_event(RUN, plan.spec, plan.models)])

    def record(self, events):
        return RunRecorder(events, lambda record, event: record.log.publish(event.sequence), self.store)

    async def carry_out(self, record, selections=(), cancelled=()):
        """Carries the run out to its end, and takes images on by hand whenever it is idle."""
        began = (await first_of(record)).state
        plan = restore_plan(began.spec, began.models, ())
        run = record.run
        while True:
            if run.has_work:
                policy = self.context.retry_policy
                flow = Flow(plan, record, self.context, caller="me", retry_policy=policy)
                flow.cancel_images(cancelled)
                await flow.run()
                state, error = flow.outcome
                if state == RunState.RUN_STATE_AWAITING_SELECTION:
                    record.await_selection(flow.next_stage, flow.candidates)
                else:
                    record.finish(state, error)
            if len(run.selections) == len(selections):
                return
            asked = selections[len(run.selections)]
            selected = await make_selection("", asked, plan, run, self.pools)
            assign_indexes(selected, plan, run)
            record.selected(selected)

    def made(self):
        """What the stages were asked to make since the last question."""
        names = []
        for worker in (*self.stages.generators, *self.stages.refiners, *self.stages.upscalers):
            indexes = [request.images[0].index for request in worker.requests]
            names += [f"{RUN}/images/{worker.stage.name}-{index}" for index in indexes]
            worker.requests.clear()
        return names


@pytest.fixture
async def workshop(tmp_path):
    async with scripted_stages() as stages:
        pools = {}
        for kind, worker in zip(STAGES, (stages.generators, stages.refiners, stages.upscalers), strict=True):
            pools[kind.name] = Pool(
                Discovery(kind, [Target("127.0.0.1", worker[0].port)], check_every_s=3600.0)
            )
        store = open_store(str(tmp_path))
        for pool in pools.values():
            await pool.refresh()
        yield Workshop(stages, pools, store)
        for pool in pools.values():
            await pool.__aexit__(None, None, None)
        await store.close()


async def first_of(record):
    return (await events_of(record))[0]


async def events_of(record):
    """All its events so far; those of previews are numbers alone, as a journal keeps them."""
    whole = []
    for event in record.log._events:
        kept = Event(sequence=len(whole) + 1)
        if event is None or event.HasField("preview"):
            kept.preview.SetInParent()
        else:
            kept.CopyFrom(event)
        whole.append(kept)
    return whole


def pictures(record):
    """What there is in the end, in whatever order it was made."""
    run = record.run.to_proto()
    return run.state, {one.name: (one.parent, one.seed, one.sha256) for one in run.images}


async def cut_everywhere(workshop, asked, selections=(), cancelled=()):
    """Carries a run out whole, and again from after each of its events; yields what each of them came to."""
    whole = await workshop.begin(asked)
    await workshop.carry_out(whole, selections, cancelled)
    workshop.made()
    events = await events_of(whole)
    for cut in range(1, len(events) + 1):
        record = workshop.record(events[:cut])
        settled = {*record.run.images, *record.run.given_up}
        await workshop.carry_out(record, selections, cancelled)
        yield events[cut - 1], settled, workshop.made(), record, whole


def selection(image, **stage):
    return Selection(image=f"{RUN}/images/{image}", **stage)


BY_HAND = (
    [selection("generate-1", refine={"count": 2})],
    [selection("refine-0", upscale={}), selection("generate-0", refine={"count": 1})],
    [selection("upscale-0", refine={"count": 1})],
)


@pytest.mark.parametrize(
    ("more", "selections"),
    [({}, ()), (FLOWING, ()), ({"manual": {}}, BY_HAND), ({}, BY_HAND)],
    ids=["ranked", "flowing", "by hand", "by hand after the end"],
)
async def test_a_run_that_was_cut_off_comes_to_the_same_pictures(workshop, more, selections):
    workshop.stages.refiners[0].scores = {101: 1.0}
    kinds = set()
    async for last, settled, made, record, whole in cut_everywhere(workshop, spec(**more), selections):
        kinds.add(last.WhichOneof("kind"))
        assert pictures(record) == pictures(whole), last
        assert not settled & set(made), last
        assert len(made) == len(set(made)), last
    assert kinds >= {"state", "stage_started", "progress", "preview", "image_ready", "timing", "finished"}


async def test_an_image_that_failed_is_not_tried_again(workshop):
    failure = StageEvent.ImageFailure(index=1, reason="DEVICE_OOM", message="no memory left")
    workshop.stages.generators[0].failures[1] = failure
    async for last, settled, made, record, whole in cut_everywhere(workshop, spec(generate={"count": 3})):
        assert pictures(record) == pictures(whole), last
        assert record.run.to_proto().error == whole.run.to_proto().error
        assert not settled & set(made), last


async def test_a_cancelled_image_stays_cancelled(workshop):
    record = await workshop.begin(spec(generate={"count": 3}))
    record.warn(CANCELLED, "cancelled by the caller", f"{RUN}/images/generate-1", given_up=True)
    await workshop.carry_out(record)
    assert f"{RUN}/images/generate-1" not in workshop.made()
    assert record.run.state == RunState.RUN_STATE_SUCCEEDED


async def test_attempts_are_counted_on(workshop):
    record = await workshop.begin(spec(generate={"count": 1}, refine=None, upscale=None))
    record.stage_started(STAGES[0], "127.0.0.1:1", 1, 0, "")
    await workshop.carry_out(record)
    started = [event.stage_started for event in await events_of(record) if event.HasField("stage_started")]
    assert [one.attempt for one in started] == [1, 2]


async def test_the_ranking_that_was_reported_counts(workshop):
    refiner = workshop.stages.refiners[0]
    refiner.scores = {101: 1.0}
    whole = await workshop.begin(spec())
    await workshop.carry_out(whole)
    events = await events_of(whole)
    cut = next(place for place, event in enumerate(events) if event.HasField("ranked"))
    refiner.scores = {100: 1.0}
    record = workshop.record(events[: cut + 1])
    await workshop.carry_out(record)
    parents = {one.parent for one in record.run.to_proto().images if one.stage == Stage.STAGE_REFINE}
    assert parents == {f"{RUN}/images/generate-1"}


async def test_what_a_finished_run_had_left_undone_stays_undone(workshop):
    record = await workshop.begin(spec())
    record.finish(RunState.RUN_STATE_CANCELLED, None)
    await workshop.carry_out(record)
    assert workshop.made() == []
