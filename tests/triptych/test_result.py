"""What a caller holds of a run: its pictures, and how they show themselves."""

import io

import pytest
from PIL import Image as PillowImage

from tests.triptych.conftest import png
from triptych.result import RunResult
from triptych.v1.pipeline_pb2 import Event, Image, RunError, RunSpec, RunState
from triptych.v1.stage_pb2 import STAGE_GENERATE, STAGE_REFINE, PromptReading, WordReplacement

SPEC = RunSpec(prompt="a red house", seed=7)


def ready(stage: int, index: int, *, parent: str = "") -> Event:
    name = f"runs/1/images/{'generate' if stage == STAGE_GENERATE else 'refine'}-{index}"
    picture = Image(
        name=name, parent=parent, stage=stage, index=index, seed=7 + index, mime_type="image/png", data=png(8)
    )
    return Event(image_ready=Event.ImageReady(image=picture))


@pytest.fixture
def result() -> RunResult:
    """Two sketches, the second one better and refined."""
    scores = [
        Event.Ranked.Score(image=f"runs/1/images/generate-{index}", clip_score=score)
        for index, score in [(1, 0.5), (0, 0.25)]
    ]
    events = [
        Event(state=Event.StateChanged(state=RunState.RUN_STATE_QUEUED, run="runs/1", spec=SPEC)),
        ready(STAGE_GENERATE, 1),
        ready(STAGE_GENERATE, 0),
        Event(ranked=Event.Ranked(stage=STAGE_GENERATE, scores=scores, selected=[scores[0].image])),
        ready(STAGE_REFINE, 0, parent="runs/1/images/generate-1"),
        Event(warning=Event.Warning(message="refine-1 failed")),
        Event(finished=Event.Finished(state=RunState.RUN_STATE_PARTIALLY_SUCCEEDED)),
    ]
    made = RunResult()
    for sequence, event in enumerate(events, start=1):
        event.sequence = sequence
        made.update(event)
    return made


def test_a_result_explains_what_is_drawn_for_an_unknown_word():
    kitten = WordReplacement(word="kitten", replacement="cat", similarity=0.8)
    reading = PromptReading(prompt="a cat", replacements=[kitten])
    made = RunResult()
    made.update(Event(state=Event.StateChanged(run="runs/1", spec=SPEC, prompt_reading=reading)))

    assert made.notes == ["kitten: drawn as cat"]


def test_a_result_explains_what_was_asked_and_how_it_ended(result):
    assert (result.name, result.prompt, result.seed) == ("runs/1", "a red house", 7)
    assert (result.state, result.last_sequence) == ("partially_succeeded", 7)
    assert result.warnings == ["refine-1 failed"]


def test_pictures_come_in_the_order_of_stages_and_indexes(result):
    assert [each.name.rpartition("/")[2] for each in result.pictures] == [
        "generate-0",
        "generate-1",
        "refine-0",
    ]


def test_a_picture_knows_its_seed_its_score_and_its_parent(result):
    sketch = result["generate-1"]
    assert (sketch.seed, sketch.clip_score, sketch.is_chosen) == (8, 0.5, True)
    assert not result["generate-0"].is_chosen
    assert result.variations[0].parent == sketch.name


def test_the_best_picture_is_of_the_last_stage_and_has_the_highest_score(result):
    assert result.best == result["refine-0"]
    sketches = RunResult(_pictures={each.name: each for each in result.sketches})
    assert sketches.best == result["generate-1"]
    assert RunResult().best is None


def test_a_picture_can_be_saved_decoded_and_shown(result, tmp_path):
    picture = result.pictures[0]
    assert picture.save(tmp_path / "sketch.png").read_bytes() == picture.data
    assert picture.open().size == (8, 8)
    assert picture._repr_png_() == picture.data
    assert picture._repr_mimebundle_()["image/png"] == picture.data


def test_the_bytes_of_a_picture_are_not_in_its_words(result):
    assert len(repr(result.pictures[0])) < 120
    assert len(repr(result)) < 400


def test_a_result_shows_itself_as_a_contact_sheet(result):
    with PillowImage.open(io.BytesIO(result._repr_png_())) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 4 * 8


def test_a_preview_stands_in_for_a_picture_that_is_missing(result):
    whole = PillowImage.open(io.BytesIO(result.contact_sheet())).height
    with_more = {("upscale", 0): png(8), ("generate", 0): png(8)}
    taller = PillowImage.open(io.BytesIO(result.contact_sheet(with_more))).height
    assert taller > whole


def test_a_failed_run_keeps_its_reason(result):
    error = RunError(reason="NO_WORKER", message="nobody serves refine")
    result.update(Event(finished=Event.Finished(state=RunState.RUN_STATE_FAILED, error=error)))
    assert (result.state, result.error.reason) == ("failed", "NO_WORKER")
