"""The networks and steps against recorded vectors of another implementation, through converted folders."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from services.errors import ModelError
from services.generator.unclip.conversion.convert import PARTS, convert
from services.generator.unclip.conversion.verify import compare
from services.generator.unclip.model import load_model
from services.generator.unclip.schedule import timesteps
from tests.generator.unclip.published import GOLDEN, KARLO_FILES, write_karlo
from tests.generator.unclip.recorded import differences, draw_recorded

CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]


@pytest.mark.parametrize("part", PARTS)
def test_a_network_and_each_of_its_steps_agree_with_the_reference(converted, part):
    differences = compare(converted / part, part, GOLDEN)
    assert differences
    assert [one for one in differences if not one.ok] == []


@pytest.mark.parametrize("name", CASES)
def test_the_whole_chain_agrees_with_the_reference(converted, name):
    """From the prompts or the picture to the result, on the reference's noise."""
    model = load_model(converted, device="cpu")
    pictures = [np.array(Image.open(GOLDEN / "one_image.png"))]
    found = draw_recorded(model, GOLDEN / f"{name}.safetensors", CASES[name], pictures)
    assert float(differences(found, GOLDEN / f"{name}.safetensors").max()) < 5e-3


def test_tokens_agree_with_the_reference(converted):
    model = load_model(converted, device="cpu")
    recorded = load_file(GOLDEN / "two_prompts.safetensors")["input_ids"].numpy()
    assert np.array_equal(model.tokenizer.encode(CASES["two_prompts"]["prompt"]), recorded)


@pytest.fixture(scope="module")
def karlo(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("karlo")
    write_karlo(hub, folder)
    return folder


@pytest.mark.parametrize("part", KARLO_FILES)
def test_karlos_own_files_give_the_same_bytes_as_the_hubs_folders(karlo, converted, tmp_path, part):
    convert(karlo / KARLO_FILES[part], tmp_path / part, part)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / part / name).read_bytes() == (converted / part / name).read_bytes()


def test_karlos_prior_needs_the_statistics_beside_it(karlo, tmp_path):
    shutil.copy(karlo / KARLO_FILES["prior"], tmp_path)
    with pytest.raises(ModelError, match="holds no ViT-L-14_stats.th"):
        convert(tmp_path / KARLO_FILES["prior"], tmp_path / "prior", "prior")


def test_another_networks_file_is_refused(hub, tmp_path):
    with pytest.raises(ModelError, match="does not look like a prior"):
        convert(hub / "decoder", tmp_path / "prior", "prior")


def test_a_setting_that_karlo_does_not_have_is_refused_by_name(hub, tmp_path):
    shutil.copytree(hub / "prior", tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | {"norm_in_type": "layer"}))
    with pytest.raises(ModelError, match="norm_in_type: expected None"):
        convert(tmp_path / "source", tmp_path / "prior", "prior")


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (2, [999, 0]),
        (7, [999, 832, 666, 500, 333, 166, 0]),
        (25, [999, 957, 916, 874, 832, 791, 749, 708, 666, 624, 583, 541, 500, 458, 416, 375, 333, 291, 250, 208, 166, 125, 83, 42, 0]),
    ],
)  # fmt: skip
def test_timesteps_are_spaced_as_published(num_steps, expected):
    assert timesteps(num_steps) == expected


def test_one_step_is_refused():
    with pytest.raises(ValueError, match="expected 2 to 1000 steps, got 1"):
        timesteps(1)
