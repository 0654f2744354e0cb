"""Scores, and who gives them."""

import pytest

from gateway.runs.recorder import MAX_PROGRESS_EVENTS, RunRecorder, first_event
from gateway.stages import GENERATE
from gateway.store import open_store
from services.errors import NotReady
from tests.gateway.fake_stage import pipeline
from tests.gateway.run_fixtures import collect, finished, spec
from triptych.client import CallError
from triptych.v1.pipeline_pb2 import RunSpec, RunState
from triptych.v1.stage_pb2 import StageEvent

RANKED_SKETCHES = {"refine": None, "upscale": None, "automatic": {"top_k_after_generate": 1}}


async def test_another_refiner_ranks_when_the_first_cannot():
    async with pipeline(refiners=2) as gateway:
        gateway.refiners[0].rank_error = NotReady("the model is still being loaded")
        events = await collect(gateway, spec(**RANKED_SKETCHES))
        assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
        assert len(gateway.refiners[1].rank_requests) == 1


async def test_ranking_fails_when_nobody_can(gateway):
    gateway.refiner.rank_error = NotReady("the model is still being loaded")
    events = await collect(gateway, spec(**RANKED_SKETCHES))
    assert finished(events).state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED
    assert finished(events).error.reason == "NOT_READY"


@pytest.mark.parametrize("scores", [[0.5], [0.5, float("nan")]], ids=["too few", "not a number"])
async def test_scores_that_cannot_be_compared_rank_nothing(gateway, scores):
    gateway.refiner.rank_answer = scores
    with pytest.raises(CallError) as raised:
        await collect(gateway, spec())
    assert raised.value.reason == "WORKER_BROKEN"


async def test_many_pictures_are_ranked_in_several_calls(gateway):
    events = await collect(gateway, spec(**{**RANKED_SKETCHES, "generate": {"count": 20}}))
    assert [len(request.images) for request in gateway.refiner.rank_requests] == [16, 4]
    assert len(next(event.ranked for event in events if event.HasField("ranked")).scores) == 20


def test_a_log_keeps_a_bounded_number_of_steps(tmp_path):
    first = first_event("runs/x", RunSpec(), [])
    record = RunRecorder(
        [first], lambda run, event: run.log.publish(event.sequence), open_store(str(tmp_path))
    )
    before = record.log.last_sequence
    for step in range(1, 1001):
        record.progress(GENERATE, StageEvent.Progress(index=0, step=step, num_steps=1000))
    assert record.log.last_sequence - before == MAX_PROGRESS_EVENTS
