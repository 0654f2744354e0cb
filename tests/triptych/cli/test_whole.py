"""The whole of it: four real services with networks of random weights, from a prompt to an upscaled picture."""

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from services.weights.conversion import conversion_module
from services.weights.model_folder import write_manifest
from tests.triptych.cli.command_line import Marked, command
from triptych.stages import WORKER_NAMES

# Few pictures and few steps: what counts is that everything fits together.
SMALL = ["--candidates=2", "--variations=1", "--num-steps=6", "--skip-ratio=0", "--seed=7", "--out=pictures"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a random model of the tiny shape for each stage."""
    options = []
    for stage in WORKER_NAMES:
        folder = tmp_path_factory.mktemp("models") / stage
        conversion_module(stage, "random_weights").write_random("tiny", folder)
        write_manifest(folder, name="random-tiny", stage=stage)
        options += [f"--{stage}-model", str(folder)]
    return options


@pytest.fixture
def whole_run(models: list[str], tmp_path: Path) -> Iterator[Marked]:
    marked = Marked(command("run", "a red house", *SMALL, *models, "--json"), folder=tmp_path)
    yield marked
    marked.close()


def test_a_prompt_becomes_an_enlarged_picture_and_no_process_stays(whole_run, tmp_path):
    output, errors = whole_run.process.communicate(timeout=240)
    assert whole_run.process.returncode == 0, errors
    assert whole_run.pids() == []
    assert "finished" in json.loads(output.splitlines()[-1])
    sizes = {}
    for path in (tmp_path / "pictures").glob("*-?.png"):
        with Image.open(path) as picture:
            sizes[path.stem] = picture.size
            assert picture.text["model"] == "random-tiny"
    assert set(sizes) == {"generate-0", "generate-1", "refine-0", "upscale-0"}
    assert sizes["upscale-0"] == tuple(4 * side for side in sizes["refine-0"])


def test_a_picture_of_ones_own_is_repainted_behind_its_mask(tmp_path):
    red, mask = Image.new("RGB", (128, 128), (200, 30, 30)), Image.new("L", (128, 128), 255)
    mask.paste(0, (0, 0, 64, 128))
    red.save(tmp_path / "red.png")
    mask.save(tmp_path / "mask.png")
    arguments = ["--image=red.png", "--mask=mask.png", "--variations=1", "--num-steps=6", "--no-upscale"]

    with closing(Marked(command("run", "a house", *arguments, "--out=pictures"), folder=tmp_path)) as marked:
        _, errors = marked.process.communicate(timeout=240)

    assert marked.process.returncode == 0, errors
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "contact-sheet.png",
        "refine-0.png",
    ]
    with Image.open(tmp_path / "pictures" / "refine-0.png") as made:
        side = made.width  # the model's
        assert set(made.crop((side * 9 // 16, 0, side, side)).get_flattened_data()) == {(200, 30, 30)}
        assert len(set(made.crop((0, 0, side * 7 // 16, side)).get_flattened_data())) > 1


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.matrix)],
)
def test_a_run_that_is_stopped_in_the_middle_leaves_no_process(whole_run, number, code):
    whole_run.read_until("stage_started")
    assert len(whole_run.pids()) == 5
    whole_run.signal_and_wait_for_all(number)
    assert whole_run.process.wait() == code
    assert whole_run.pids() == []
