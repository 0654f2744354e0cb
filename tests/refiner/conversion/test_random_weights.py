import numpy as np
import pytest
from safetensors.torch import load_file

from services.errors import ModelError
from services.refiner.conversion.random_weights import NAMES, write_random
from services.refiner.model import load_model
from services.refiner.stepper import RefineJob, refine


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_random("tiny", folder)
    return folder


def test_the_published_families_are_known():
    assert {"glid-3-xl", "glid-3-xl-finetuned", "glid-3-xl-inpaint", "tiny"} <= set(NAMES)


def test_a_random_model_is_whole_and_makes_a_picture(tiny_folder):
    model = load_model(tiny_folder, device="cpu")
    [picture] = refine(model, [RefineJob("a red house", num_steps=4)])
    assert picture.shape == (model.image_size, model.image_size, 3)
    assert picture.std() > 1


def test_the_same_seed_gives_the_same_weights(tiny_folder, tmp_path):
    write_random("tiny", tmp_path / "same")
    write_random("tiny", tmp_path / "other", seed=1)
    file = "autoencoder/model.safetensors"
    assert (tmp_path / "same" / file).read_bytes() == (tiny_folder / file).read_bytes()
    assert (tmp_path / "other" / file).read_bytes() != (tiny_folder / file).read_bytes()


def test_no_two_tensors_are_alike(tiny_folder):
    weights = load_file(tiny_folder / "unet" / "model.safetensors")
    first, second = (weights[f"middle_block.{i}.out_layers.3.weight"] for i in (0, 2))
    assert np.abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.01


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match="glid-3-xl-inpaint"):
        write_random("sdxl", tmp_path)
