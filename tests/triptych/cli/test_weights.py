"""`triptych weights` on the upscaler, the stage with the smallest networks."""

import itertools
import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from rich.progress import Progress
from safetensors.torch import load_file, save_file

from services.weights.cache_command import report_to
from services.weights.catalog import KNOWN
from services.weights.conversion import conversion_module
from services.weights.model_folder import read_manifest
from tests.services.weights.web_server import serving
from tests.triptych.cli.command_line import command, environment

GOLDEN = Path(__file__).parents[2] / "golden" / "upscaler"
NETWORK = GOLDEN / "nearest3conv_x4.safetensors"
VECTORS = GOLDEN / "nearest3conv_x4.vectors.safetensors"


@pytest.fixture
def model(triptych_here, tmp_path):
    done = triptych_here("weights", "convert", str(NETWORK), "model", "--part", "swinir", "--name", "golden")
    assert done.returncode == 0, done.stderr
    return tmp_path / "model"


def test_a_converted_part_is_in_the_manifest(model):
    manifest = read_manifest(model)
    assert (manifest.name, manifest.stage, manifest.origin) == ("golden", "upscaler", NETWORK.name)
    assert set(manifest.files) == {"swinir/config.json", "swinir/model.safetensors"}


def test_the_parts_own_folder_means_the_same(triptych_here, tmp_path, model):
    triptych_here("weights", "convert", str(NETWORK), "other/swinir", "--part", "swinir")
    assert read_manifest(tmp_path / "other").files == read_manifest(model).files


def test_converting_again_keeps_what_the_manifest_said(triptych_here, model):
    for licence in (["--licence", "Apache-2.0"], []):
        triptych_here("weights", "convert", str(NETWORK), "model", "--part", "swinir", *licence)
    manifest = read_manifest(model)
    assert (manifest.name, manifest.licence) == ("golden", "Apache-2.0")


def test_a_half_made_model_is_verified_as_far_as_it_goes(triptych_here):
    published = GOLDEN.parent / "generator" / "vqgan_tiny"
    triptych_here("weights", "convert", str(published), "half", "--part", "vqgan")
    done = triptych_here("weights", "verify", "half", "--golden", str(published))
    assert done.returncode == 0, done.stderr
    assert "still lacks dalle" in done.stderr
    assert "pixels_raw" in done.stdout


def test_a_source_that_cannot_be_converted_leaves_nothing_behind(triptych_here, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    done = triptych_here("weights", "convert", "broken.safetensors", "new/model", "--part", "swinir")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_a_source_that_cannot_be_converted_leaves_the_old_part_alone(triptych_here, model, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    triptych_here("weights", "convert", "broken.safetensors", "model", "--part", "swinir")
    assert triptych_here("weights", "verify", "model").returncode == 0
    assert {path.name for path in model.iterdir()} == {"swinir", "manifest.json"}


def test_a_part_of_another_stage_is_refused(triptych_here, model):
    done = triptych_here("weights", "convert", str(NETWORK), "model", "--part", "vqgan")
    assert done.returncode == 1
    assert "is a model of the upscaler, vqgan belongs to a generator" in done.stderr


def test_golden_vectors_hold_through_the_converted_folder(triptych_here, model):
    done = triptych_here("weights", "verify", "model", "--golden", str(VECTORS))
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()[1:]
    assert header.split() == ["array", "largest", "absolute", "difference", "tolerance", "ok"]
    assert len(rows) > 0
    assert all(row.endswith("yes") for row in rows)


def test_a_network_that_is_slightly_off_fails_with_1(triptych_here, tmp_path):
    weights = load_file(NETWORK)
    weights["conv_last.weight"] = weights["conv_last.weight"] * 1.01
    save_file(weights, tmp_path / NETWORK.name)
    triptych_here("weights", "convert", NETWORK.name, "off", "--part", "swinir")
    done = triptych_here("weights", "verify", "off/swinir", "--golden", str(VECTORS), "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert not report["ok"]
    assert {"name", "max_abs_diff", "tolerance", "ok"} == set(report["arrays"][0])


def test_a_file_that_changed_is_found_by_its_sha256(triptych_here, model):
    data = bytearray((model / "swinir" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "swinir" / "model.safetensors").write_bytes(data)
    done = triptych_here("weights", "verify", "model/swinir")
    assert done.returncode == 1
    assert "expected sha256" in done.stderr
    assert "convert or pull the model again" in done.stderr


def test_a_model_is_verified_by_its_name(triptych_here, model, tmp_path):
    shutil.copytree(model, tmp_path / "models" / "upscaler" / "mine")
    done = triptych_here("weights", "verify", "mine", TRIPTYCH_MODELS=str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert "2 files as the manifest says (upscaler golden)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "tiny"], "each have a model 'tiny': say which with --stage"),
        (["verify", "gigantic"], "no model 'gigantic' is on this machine"),
        (["push", "gigantic", "--to", "s3://bucket/cache"], "no model 'gigantic' is on this machine"),
        (["push", "real-l", "--to", "s3://bucket/cache"], "`triptych weights pull` fetches it"),
        (["pull", "tiny"], "tiny ships with Triptych: there is nothing to pull"),
        (["pull", "gigantic"], "for a model of your own in the S3 cache say its --stage"),
        (
            ["pull", "real-l", "--from", "/nowhere"],
            "expected the published files there or in /nowhere/swinir",
        ),
        (["rm", "gigantic"], "`triptych weights list` shows what is"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_that_explains_what_to_do(
    triptych_here, tmp_path, arguments, message
):
    done = triptych_here("weights", *arguments, TRIPTYCH_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pull_that_is_interrupted_ends_at_once_and_goes_on_later(model, tmp_path):
    files = {
        f"model/{path.relative_to(model)}": path.read_bytes() for path in model.rglob("*") if path.is_file()
    }
    name = "model/swinir/model.safetensors"
    with serving(files) as site:
        site.stall_at = len(files[name]) // 2
        arguments = ["weights", "pull", "mine", "--stage", "upscaler", "--from", f"{site.url}/model"]
        variables = environment(TRIPTYCH_CACHE=str(tmp_path / "cache"))
        first = subprocess.Popen(command(*arguments), env=variables, stderr=subprocess.PIPE, text=True)
        assert site.stalled.wait(120)
        first.send_signal(signal.SIGINT)
        output = first.communicate(timeout=120)[1]
        assert first.returncode == 130
        assert "stopped; what has arrived is kept, run the command again to go on" in output
        assert "Traceback" not in output
        site.stall_at = 0
        again = subprocess.run(
            command(*arguments), env=variables, capture_output=True, text=True, check=False
        )
    assert again.returncode == 0, again.stderr
    assert read_manifest(tmp_path / "cache" / "models" / "upscaler" / "mine") == read_manifest(model)


def test_what_was_there_before_is_no_part_of_the_rate():
    clock = itertools.count()
    bar = Progress(disable=True, get_time=lambda: float(next(clock)))
    show = report_to(bar, bar.add_task("pull", total=None))
    for megabytes in (900, *range(901, 910)):
        show(megabytes * 10**6, 10**9)
    assert bar.tasks[0].completed == 909 * 10**6
    assert bar.tasks[0].speed <= 10**6


def test_a_folder_that_is_no_model_explains_what_was_expected(triptych_here, tmp_path):
    (tmp_path / "empty").mkdir()
    done = triptych_here("weights", "verify", "empty")
    assert done.returncode == 1
    assert "expected MODEL or MODEL/PART" in done.stderr


def test_random_weights_are_a_whole_model_and_say_that_they_are_random(triptych_here, tmp_path):
    done = triptych_here("weights", "random", "--like", "tiny", "--stage", "upscaler", "model")
    assert done.returncode == 0, done.stderr
    assert triptych_here("weights", "verify", "model").returncode == 0
    assert read_manifest(tmp_path / "model").name == "random-tiny"


def test_random_weights_never_replace_a_folder_with_something_in_it(triptych_here, model):
    done = triptych_here("weights", "random", "--like", "tiny", "--stage", "upscaler", "model")
    assert done.returncode == 1
    assert "is not empty" in done.stderr


def test_an_unknown_family_lists_those_that_are_known(triptych_here):
    done = triptych_here("weights", "random", "--like", "gigantic", "--stage", "upscaler", "model")
    assert done.returncode == 1
    assert "tiny (upscaler)" in done.stderr


def test_models_below_the_own_folder_are_listed(triptych_here, model, tmp_path):
    shutil.copytree(model, tmp_path / "models" / "upscaler" / "mine")
    done = triptych_here("weights", "list", "--json", TRIPTYCH_MODELS=str(tmp_path / "models"))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert ("upscaler", "mine") in [(row["stage"], row["name"]) for row in rows]


def test_models_in_the_s3_cache_are_listed_with_their_place(triptych_here, model, bucket, tmp_path):
    variables = {"TRIPTYCH_S3_CACHE": f"s3://{bucket}/cache", "TRIPTYCH_CACHE": str(tmp_path / "cache")}
    assert triptych_here("weights", "push", "model", **variables).returncode == 0
    rows = [
        json.loads(line)
        for line in triptych_here("weights", "list", "--json", **variables).stdout.splitlines()
    ]
    [row] = [row for row in rows if row["name"] == "golden"]
    assert (row["folder"], row["s3"]) == ("", f"s3://{bucket}/cache/upscaler/golden")


def test_an_s3_cache_that_cannot_be_asked_is_a_warning_beside_the_list(triptych_here):
    done = triptych_here("weights", "list", TRIPTYCH_S3_CACHE="nonsense")
    assert done.returncode == 0
    assert "Warning: expected s3://BUCKET/PREFIX, got nonsense" in done.stderr
    assert "real-l" in done.stdout


def test_every_family_that_is_known_by_name_has_random_weights_under_that_name():
    for (stage, name), known in KNOWN.items():
        assert name in conversion_module(stage, "random_weights", known.architecture).NAMES
