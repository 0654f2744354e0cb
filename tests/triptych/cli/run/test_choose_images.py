"""What is understood of the answer to "which go on?"."""

import pytest

from tests.triptych.test_result import ready
from triptych.cli.run.choose_images import understand
from triptych.result import RunResult
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import Event, RunState
from triptych.v1.stage_pb2 import STAGE_GENERATE, STAGE_REFINE

WHOLE = make_spec("a red house")


@pytest.fixture
def run() -> RunResult:
    """Two sketches, and one variation of the first."""
    made = RunResult()
    made.update(Event(state=Event.StateChanged(state=RunState.RUN_STATE_RUNNING, run="runs/1")))
    for event in (ready(STAGE_GENERATE, 0), ready(STAGE_GENERATE, 1), ready(STAGE_REFINE, 0)):
        made.update(event)
    return made


def chosen(line, run, spec=WHOLE):
    choice = understand(line, run, spec)
    return [name.rpartition("/")[2] for name in choice.names], choice.stage


def test_a_number_is_a_picture_of_the_newest_stage(run):
    assert chosen("0", run) == (["refine-0"], "upscale")


def test_a_name_goes_back_to_an_earlier_stage(run):
    assert chosen("generate-1, generate-0", run) == (["generate-1", "generate-0"], "refine")


def test_without_refining_sketches_are_enlarged(run):
    assert chosen("generate-1", run, make_spec("a red house", variations=0))[1] == "upscale"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7", "there is no picture refine-7; there are generate-0, generate-1, refine-0"),
        ("wizard", "there is no picture wizard"),
        ("generate-0 refine-0", "expected pictures of one stage, got generate and refine"),
    ],
)
def test_what_is_not_understood_is_said(run, line, message):
    with pytest.raises(ValueError, match=message):
        understand(line, run, WHOLE)
