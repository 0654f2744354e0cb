from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from services.pytorch.clip import ClipConfig
from services.refiner.conversion.random_weights import SPELLING, write_random_part
from services.refiner.model import load_model
from services.refiner.networks.autoencoder import AutoencoderConfig
from services.refiner.networks.text_encoder import TextEncoderConfig
from services.refiner.networks.unet import UNetConfig


class Golden:
    """Recorded weights and arrays; see tests/golden/refiner/README.md."""

    folder = Path(__file__).parent.parent / "golden" / "refiner"

    def arrays(self, name):
        with np.load(self.folder / f"{name}.npz") as arrays:
            return {
                key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"
            }

    def weights(self, name):
        return {key: value.float() for key, value in load_file(self.folder / f"{name}.safetensors").items()}


@pytest.fixture(scope="session")
def golden():
    return Golden()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


SMALL = {
    "bert": TextEncoderConfig(
        n_embed=32, n_layer=1, vocab_size=len(SPELLING), max_seq_len=20, heads=2, dim_head=16
    ),
    "clip": ClipConfig(
        embed_dim=16, vocab_size=len(SPELLING), context_length=16, transformer_width=32, transformer_layers=1,
        transformer_heads=2, image_size=32, vision_patch_size=8, vision_width=32, vision_layers=1, vision_heads=2,
    ),
    "unet": UNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_ds=(1, 2), num_heads=4,
        context_dim=32, clip_embed_dim=16, guided_channels=3,
    ),
    # Random weights keep about unit variance, so nothing needs scaling.
    "autoencoder": AutoencoderConfig(image_size=32, ch=32, ch_mult=(1, 2), num_res_blocks=1, scale_factor=1.0),
}  # fmt: skip


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A whole refiner of random weights."""
    folder = tmp_path_factory.mktemp("small-refiner")
    for part, config in SMALL.items():
        write_random_part(part, config, folder / part)
    return folder


@pytest.fixture(scope="session")
def model(model_folder):
    return load_model(model_folder, device="cpu")


@pytest.fixture(scope="session")
def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
