"""What is known of a run from its events, and how a terminal shows it."""

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from triptych.cli.run.options import RunOptions, to_spec
from triptych.cli.terminal.display import cell, stages_table
from triptych.progress import RunProgress, expected_counts
from triptych.v1.pipeline_pb2 import Event, Image as RunImage
from triptych.v1.stage_pb2 import STAGE_GENERATE

NOT_SET = dict.fromkeys(
    ["guidance_scale", "temperature", "top_k", "top_p", "num_steps", "skip_ratio", "refine_guidance_scale"]
    + ["negative_prompt", "tile_size", "tile_overlap", "mask", "fit", "text_difference", "prior_num_steps"]
    + ["text_difference_weight"]
    + ["decoder_num_steps", "super_res_num_steps", "prior_guidance_scale"]
)


def options(**changes):
    counts = {
        "candidates": 4,
        "refine_top": 2,
        "variations": 3,
        "upscale_top": 1,
        "seed": 1,
        "preview_every": 0,
        "images": (),
        "image_prompts": (),
    }
    return RunOptions(
        **{**NOT_SET, **counts, "no_refine": False, "no_upscale": False, "manual": False, **changes}
    )


class FakeClock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, {"generate": 4, "refine": 6, "upscale": 1}),
        ({"no_upscale": True}, {"generate": 4, "refine": 6}),
        ({"upscale_top": 0}, {"generate": 4, "refine": 6}),
        ({"no_refine": True}, {"generate": 4, "upscale": 1}),
        ({"refine_top": 0}, {"generate": 4, "upscale": 1}),
        ({"variations": 0}, {"generate": 4, "upscale": 1}),
        ({"no_refine": True, "no_upscale": True}, {"generate": 4}),
        ({"manual": True}, {"generate": 4}),
        ({"refine_top": 4, "upscale_top": 12}, {"generate": 4, "refine": 12, "upscale": 12}),
    ],
)
def test_the_options_decide_how_many_pictures_each_stage_makes(changes, counts):
    assert expected_counts(to_spec("a house", options(**changes))) == counts


def test_choosing_all_pictures_lets_none_wait_for_the_others():
    spec = to_spec("a house", options(refine_top=4, upscale_top=12))
    assert (spec.automatic.top_k_after_generate, spec.automatic.top_k_after_refine) == (0, 0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "house.png")
    return tmp_path / "house.png"


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, {"refine": 6, "upscale": 1}),
        ({"no_upscale": True}, {"refine": 6}),
        ({"no_refine": True}, {"upscale": 2}),
        ({"upscale_top": 6}, {"refine": 6, "upscale": 6}),
    ],
)
def test_pictures_of_ones_own_take_the_place_of_sketches(changes, counts, picture):
    spec = to_spec("a house", options(images=(picture, picture), **changes))

    assert expected_counts(spec) == counts
    assert not spec.HasField("generate")
    assert [(image.mime_type, image.data) for image in spec.init_images] == [
        ("image/png", picture.read_bytes())
    ] * 2


def test_a_mask_goes_with_the_refinement(picture):
    spec = to_spec("a house", options(images=(picture,), mask=picture))
    assert spec.refine.mask.data == picture.read_bytes()


def test_settings_that_were_not_given_are_left_to_the_service():
    settings = to_spec("a house", options(top_k=0)).generate.settings
    assert settings.HasField("top_k")
    assert not settings.HasField("temperature")


@pytest.fixture
def progress():
    return RunProgress(to_spec("a house", options()), clock=FakeClock())


def test_a_stage_takes_from_its_start_to_its_last_picture(progress):
    progress.update(Event(stage_started=Event.StageStarted(stage=STAGE_GENERATE, indexes=range(4))))
    for index in range(4):
        progress.clock.now_s += 2
        image = RunImage(stage=STAGE_GENERATE, index=index)
        progress.update(Event(image_ready=Event.ImageReady(image=image)))
    progress.clock.now_s += 50
    assert progress.stages["generate"].elapsed_s(progress.clock()) == 8


def test_the_terminal_shows_each_picture_of_each_stage(progress):
    progress.update(Event(stage_started=Event.StageStarted(stage=STAGE_GENERATE, indexes=range(4))))
    progress.update(Event(image_ready=Event.ImageReady(image=RunImage(stage=STAGE_GENERATE, index=0))))
    half = Event.ImageProgress(stage=STAGE_GENERATE, index=1, step=4, num_steps=8)
    progress.update(Event(progress=half))
    console = Console(file=io.StringIO(), width=80)
    console.print(stages_table(progress.stages, progress.clock()))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == ["generate █▅·· 1 of 4 0.0 s", "refine ······ 0 of 6", "upscale · 0 of 1"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "number 3 in the queue"), (11.6, "number 3 in the queue, about 12 s")]
)
def test_a_run_that_waits_for_its_turn_states_its_place(progress, seconds, words):
    queued = Event.Queued(position=3)
    if seconds is not None:
        queued.estimated_wait.FromNanoseconds(int(seconds * 1e9))
    progress.update(Event(queued=queued))
    assert str(progress.waiting) == words
    assert list(progress.stages) == ["generate", "refine", "upscale"]
    progress.update(Event(queued=Event.Queued(position=0)))
    assert progress.waiting is None


def test_a_stage_that_waits_for_a_worker_states_its_place(progress):
    progress.update(Event(queued=Event.Queued(stage=STAGE_GENERATE, position=2)))
    console = Console(file=io.StringIO(), width=80)
    console.print(stages_table(progress.stages, progress.clock()))
    assert "0 of 4  number 2 in the queue" in console.file.getvalue().splitlines()[0]


def test_cells_rise_with_the_share_of_the_steps():
    assert [cell(eighth / 8) for eighth in range(9)] == list("·▂▃▄▅▆▇██")
