import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from services.errors import ModelError
from services.refiner.model import load_model, load_part
from services.refiner.networks.unet import UNet
from services.refiner.stepper import RefineJob, refine


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(model_folder, tmp_path / "model")


def change_weights(part_folder, change):
    weights = load_file(part_folder / "model.safetensors")
    change(weights)
    save_file(weights, part_folder / "model.safetensors")


def change_config(part_folder, **settings):
    config = json.loads((part_folder / "config.json").read_text())
    (part_folder / "config.json").write_text(json.dumps(config | settings))


def test_a_left_over_and_a_missing_tensor_are_named(folder):
    change_weights(folder / "unet", lambda weights: weights.update({"extra": weights.pop("out.2.bias")}))
    with pytest.raises(ModelError, match=r"first: out\.2\.bias.*first: extra"):
        load_part(folder / "unet", "unet")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    change_weights(folder / "unet", lambda weights: weights.update({"out.2.bias": torch.zeros(5)}))
    with pytest.raises(ModelError, match=r"out\.2\.bias: expected shape \(4,\), got \(5,\)"):
        load_part(folder / "unet", "unet")


def test_weights_that_are_cut_short_are_refused(folder):
    path = folder / "bert" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="no whole safetensors file"):
        load_part(folder / "bert", "bert")


def test_weights_that_are_not_there_are_named(folder):
    (folder / "bert" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_part(folder / "bert", "bert")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chanel_mult": [1]}, "unknown settings chanel_mult"),
        ({"num_heads": "four"}, "num_heads: expected a number"),
        ({"num_heads": 5}, "do not divide into 5 heads"),
        ({"model_channels": 33}, "no unet can be built so"),
        ({"norm_groups": 7}, "no unet can be built so|norm groups"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(folder, settings, message):
    change_config(folder / "unet", **settings)
    with pytest.raises(ModelError, match=message):
        load_part(folder / "unet", "unet")


def test_parts_of_different_models_are_distinguished(model):
    with torch.device("meta"):
        other = UNet(replace(model.unet.config, context_dim=48))
    with pytest.raises(ModelError, match="context_dim is 48, bert's n_embed is 32"):
        replace(model, unet=other)


def test_a_clip_tokenizer_must_end_with_its_highest_id(folder):
    path = folder / "clip" / "vocab.txt"
    words = path.read_text().split()
    path.write_text("\n".join([words[-1], *words[:-1]]))
    with pytest.raises(ModelError, match="must have the highest id"):
        load_model(folder, device="cpu")


def test_bfloat16_makes_a_picture_like_float32_s(model, model_folder, picture):
    job = RefineJob("a red house", picture, num_steps=8, guidance_scale=1.0)
    half = load_model(model_folder, device="cpu", dtype="bfloat16")
    [precise], [coarse] = refine(model, [job]), refine(half, [job])
    # Random weights: 8 bits of mantissa through 13 calls of the network and the decoder.
    assert np.abs(precise.astype(int) - coarse).mean() < 12


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "float32", "expected auto, cpu, cuda"),
        ("meta", "float32", "expected auto, cpu, cuda"),
        ("cuda:99", "float32", "is not there"),
        ("cpu", "float64", "expected one of auto, float32, bfloat16, float16"),
    ],
)
def test_an_impossible_place_is_refused(model_folder, device, dtype, message):
    with pytest.raises(ModelError, match=message):
        load_model(model_folder, device=device, dtype=dtype)
