"""`triptych run` against a scripted gateway: what it sends, writes, prints and exits with."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format
from PIL import Image

import triptych as package
from tests.triptych.cli.command_line import command, environment
from triptych.v1.pipeline_pb2 import Event
from triptych.v1.stage_pb2 import PromptReading, WordReplacement

PROMPT = "a red house under a full moon"


@pytest.fixture
def finished(triptych, gateway, tmp_path):
    return triptych("run", PROMPT, "--seed", "7", "--out", "pictures", "--gateway", gateway.address)


def test_every_picture_and_the_contact_sheet_are_written(finished, tmp_path):
    assert finished.returncode == 0, finished.stderr
    names = {path.stem for path in (tmp_path / "pictures").glob("*.png")}
    sketches = {f"generate-{index}" for index in range(8)}
    variations = {f"refine-{index}" for index in range(8)}
    assert names == sketches | variations | {"upscale-0", "contact-sheet"}


def test_a_picture_has_how_it_was_made(finished, tmp_path):
    with Image.open(tmp_path / "pictures" / "generate-3.png") as picture:
        picture.load()
        text = {key: str(value) for key, value in picture.text.items()}
    assert text == {
        "prompt": PROMPT,
        "seed": "10",
        "stage": "generate",
        "model": "scripted",
        "model-digest": "abc123",
        "parent": "",
        "run": "runs/1",
        "Software": f"triptych {package.__version__}",
    }


def test_the_places_and_the_times_of_the_stages_are_printed(finished):
    lines = finished.stdout.splitlines()
    assert [line.split(" in ")[0] for line in lines if not line.startswith(" ")] == [
        "generate: 8 of 8",
        "refine: 8 of 8",
        "upscale: 1 of 1",
        "seed: 7",
        f"all on one sheet: {Path('pictures/contact-sheet.png')}",
    ]
    assert "  pictures/upscale-0.png" in lines


def test_without_a_terminal_progress_is_plain_lines(finished):
    assert "refine-7 (8 of 8) after" in finished.stderr
    assert "\x1b" not in finished.stdout + finished.stderr


def test_json_is_one_event_a_line_with_paths_in_place_of_pictures(triptych, gateway, tmp_path):
    done = triptych("run", PROMPT, "--gateway", gateway.address, "--preview-every", "1", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    carriers = [line[kind] for line in lines for kind in ("image_ready", "preview") if kind in line]
    assert len(carriers) == 18
    for carrier in carriers:
        assert "data" not in carrier["image"]
        with Image.open(tmp_path / carrier["image"]["path"]) as picture:
            assert picture.width in (8, 32)


def test_the_field_names_of_earlier_releases_can_be_had(triptych, gateway):
    arguments = (
        "run",
        PROMPT,
        "--gateway",
        gateway.address,
        "--json",
        "--no-refine",
        "--no-upscale",
        "-n",
        "1",
    )
    old = triptych(*arguments, TRIPTYCH_JSON_NAMES="camel").stdout
    assert "imageReady" in old
    assert "image_ready" not in old


@pytest.mark.parametrize(("file_format", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF")])
def test_pictures_are_kept_in_the_format_that_was_asked_for(triptych, gateway, tmp_path, file_format, kind):
    triptych(
        "run",
        "x",
        "--gateway",
        gateway.address,
        "-n",
        "1",
        "--no-refine",
        "--no-upscale",
        "-o",
        "p",
        "--format",
        file_format,
    )
    (path,) = (tmp_path / "p").glob("generate-0.*")
    with Image.open(path) as picture:
        assert picture.format == kind
        assert json.loads(picture.getexif()[0x010E])["prompt"] == "x"


def test_a_folder_never_has_pictures_of_two_runs(triptych, gateway, tmp_path):
    small = ("--gateway", gateway.address, "--no-refine", "--no-upscale", "--out", "p")
    triptych("run", "x", "-n", "3", *small)
    triptych("run", "y", "-n", "1", *small)
    assert len(list((tmp_path / "p").glob("generate-*"))) == 3
    assert len(list((tmp_path / "p-2").glob("generate-*"))) == 1


def test_several_prompts_are_a_run_each(triptych, gateway, tmp_path):
    (tmp_path / "prompts").write_text("two boats\n\nthree cats\nthree cats!\n")
    small = ("--gateway", gateway.address, "--no-refine", "--no-upscale", "-n", "1", "--seed", "7", "-q")
    done = triptych("run", "a house", "--prompt-file", "prompts", *small)
    assert [spec.prompt for spec in gateway.specs] == ["a house", "two boats", "three cats", "three cats!"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a-house-7",
        "two-boats-7",
        "three-cats-7",
        "three-cats-7-2",
    }
    assert done.stderr == ""


def test_json_lines_are_events_of_the_contract(triptych, gateway):
    done = triptych("run", PROMPT, "--gateway", gateway.address, "--json")
    events = [
        json_format.Parse(line, Event(), ignore_unknown_fields=True) for line in done.stdout.splitlines()
    ]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].HasField("finished")


def test_the_default_folder_is_named_after_prompt_and_seed(triptych, gateway, tmp_path):
    triptych("run", "A red/house!", "--seed", "7", "--gateway", gateway.address)
    assert (tmp_path / "out" / "a-red-house-7" / "contact-sheet.png").exists()


def test_options_come_from_the_environment_too(triptych, gateway):
    triptych("run", PROMPT, TRIPTYCH_GATEWAY=gateway.address, TRIPTYCH_SEED="42", TRIPTYCH_SKIP_RATIO="0.25")
    (spec,) = gateway.specs
    assert (spec.seed, spec.refine.settings.skip_ratio) == (42, 0.25)


def test_words_that_are_drawn_as_others_are_named(triptych, gateway):
    replaced = [WordReplacement(word="kitten", replacement="cat", similarity=0.8)]
    gateway.readings["a kitten"] = PromptReading(prompt="a small cat", replacements=replaced)
    done = triptych("run", "a kitten", "--gateway", gateway.address)
    assert "Note: kitten: drawn as cat\nNote: the prompt is drawn as 'a small cat'" in done.stderr
    assert done.returncode == 0


def test_an_unknown_prompt_is_answered_with_others_and_the_way_to_a_larger_model(triptych, gateway):
    gateway.readings["qwerty"] = PromptReading(
        prompt="a red house", is_unknown=True, suggestions=["a cat", "two trees", "a boat"]
    )
    done = triptych("run", "qwerty", "--gateway", gateway.address)
    assert "knows nothing in your prompt and draws 'a red house'" in done.stderr
    assert "try: 'a cat', 'two trees', 'a boat'" in done.stderr
    assert "triptych weights pull mini" in done.stderr
    assert done.returncode == 0


def test_a_failed_run_explains_why_and_keeps_what_it_has(triptych, gateway, tmp_path):
    done = triptych("run", "a broken house", "--no-refine", "--gateway", gateway.address, "--out", "here")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: the run failed: nobody serves the stage 'refine' now"
    assert (tmp_path / "here" / "contact-sheet.png").exists()


def test_what_is_no_picture_is_refused(triptych, gateway):
    done = triptych("run", "a garbled house", "--gateway", gateway.address)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: the gateway sent a picture that is none")


def test_a_gateway_that_is_not_there_is_one_line(triptych, tmp_path):
    done = triptych("run", PROMPT, "--gateway", "127.0.0.1:1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: no gateway answers at 127.0.0.1:1")
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([" "], "it is empty"),
        ([PROMPT, "--candidates", "0"], "0 is not in the range"),
        ([PROMPT, "--refine-top", "9"], "--refine-top 9: expected at most the 8 of --candidates"),
        ([PROMPT, "--upscale-top", "9"], "--upscale-top 9: expected at most 8"),
        ([PROMPT, "--seed", "-1"], "-1 is not in the range"),
        ([PROMPT, "--image", "nowhere.png"], "'nowhere.png' does not exist"),
        ([PROMPT, "--image", __file__], "expected a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF or HEIC picture"),
        ([PROMPT, "--image", __file__, "--no-refine", "--no-upscale"], "expected a stage to take it to"),
        ([PROMPT, "--mask", __file__], "--mask: expected an --image that is refined"),
    ],
)
def test_wrong_usage_is_reported_before_anything_starts(triptych, arguments, message):
    done = triptych("run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


# Where /proc is, nobody can make a file in it, not even root.
@pytest.mark.parametrize("folder", ["taken/below", "/proc"])
def test_a_folder_that_cannot_be_written_is_reported_before_anything_starts(triptych, tmp_path, folder):
    (tmp_path / "taken").write_text("a file")
    done = triptych("run", PROMPT, "--out", folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot write to {folder}: ")
    assert done.stderr.endswith("; choose another folder with --out\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_the_run_at_the_gateway(gateway, tmp_path, number, code):
    with subprocess.Popen(
        command("run", "endless", "--gateway", gateway.address, "--json"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "image_ready" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code
    assert gateway.was_cancelled.wait(120)
    assert "Traceback" not in errors
