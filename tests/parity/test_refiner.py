"""The refiner's networks beside diffusers and transformers, on random checkpoints in the published layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from services.pytorch.parts import config_from_json, shapes
from services.refiner.conversion.convert import convert
from services.refiner.model import NETWORKS, empty_network, load_part
from services.weights.model_folder import GoldenDifference
from tests.parity.conftest import ask, beyond_tolerance

pytestmark = pytest.mark.parity

# Of an array's largest value: two float32 implementations differ by the order of sums alone.
RELATIVE_TOLERANCE = 1e-5

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 1, 2, 2],
    "num_res_blocks": 2,
    "attention_ds": [1, 2, 4],
    "num_heads": 8,
    "context_dim": 64,
    "clip_embed_dim": None,
}
CASES: dict[str, dict[str, Any]] = {
    "unet": {"part": "unet", "config": UNET},
    "unet_with_clip": {"part": "unet", "config": UNET | {"clip_embed_dim": 48}},
    "unet_inpaint": {"part": "unet", "config": UNET | {"clip_embed_dim": 48, "in_channels": 8}},
    "autoencoder": {
        "part": "autoencoder",
        "config": {"ch": 32, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 2, "z_channels": 4, "embed_dim": 4},
    },
    "bert": {
        "part": "bert",
        "config": {
            "n_embed": 64,
            "n_layer": 2,
            "vocab_size": 1000,
            "max_seq_len": 77,
            "heads": 8,
            "dim_head": 64,
            "ff_mult": 4,
        },
    },
    # Heads are 64 wide, as in every CLIP that OpenAI published.
    "clip": {
        "part": "clip",
        "config": {
            "projection_dim": 48,
            "text_config": {
                "vocab_size": 300,
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": 16,
            },
            "vision_config": {
                "hidden_size": 128,
                "intermediate_size": 512,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
        },
    },
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    for seed, (name, case) in enumerate(CASES.items()):
        if case["part"] != "clip":
            (folder / name).mkdir()
            write_checkpoint(folder / name, case["part"], case["config"], seed)
    return ask("diffusers_oracle", "torch", folder, CASES)


def write_checkpoint(folder: Path, part: str, config: dict[str, Any], seed: int) -> None:
    """Our names are the published ones, and diffusers reads those; every parameter of a size that matters."""
    network = empty_network(part, config_from_json(NETWORKS[part][0], config, folder / part), folder)
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes(network).items():
        noise = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            tensors[name] = (0.1 if name.endswith("bias") else 0.2) * noise + float(name.endswith("weight"))
        else:
            tensors[name] = noise / noise[0].numel() ** 0.5
    save_file(tensors, folder / "checkpoint.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": 8} if part == "unet" else {}))


def ours(case: str, answers: Path, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Our network, converted from what the oracle computed with, and what it computed."""
    part = CASES[case]["part"]
    folder.mkdir()
    file = "model.safetensors" if part == "clip" else "checkpoint.safetensors"
    convert(answers / case / file, folder, part)
    with np.load(answers / case / "vectors.npz") as vectors:
        return load_part(folder, part), {name: torch.from_numpy(vectors[name]) for name in vectors.files}


def differences(computed: dict[str, Tensor], vectors: dict[str, Tensor]) -> list[GoldenDifference]:
    return [
        GoldenDifference(
            name,
            float((value - vectors[name]).abs().max()),
            RELATIVE_TOLERANCE * float(vectors[name].abs().max()),
        )
        for name, value in computed.items()
    ]


@pytest.mark.parametrize("case", ["unet", "unet_with_clip", "unet_inpaint"])
def test_the_unet_computes_what_diffusers_does(case: str, answers: Path, tmp_path: Path) -> None:
    network, vectors = ours(case, answers, tmp_path / "unet")
    x, image_embed = vectors["x"][:, :4], vectors["x"][:, 4:]
    clip_embed = vectors["clip_embed"] if network.config.clip_embed_dim else None
    rest = (clip_embed, image_embed) if network.config.image_channels else (clip_embed,)
    with torch.inference_mode():
        noise = network(x, vectors["timesteps"], vectors["context"], *rest)
    assert beyond_tolerance(differences({"noise": noise}, vectors)) == []


def test_the_autoencoder_computes_what_diffusers_does(answers: Path, tmp_path: Path) -> None:
    network, vectors = ours("autoencoder", answers, tmp_path / "autoencoder")
    with torch.inference_mode():
        posterior = network.encode(vectors["image"])
        computed = {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "decoded": network.decode(vectors["z"]),
        }
    assert beyond_tolerance(differences(computed, vectors)) == []


def test_the_text_encoder_computes_what_diffusers_does(answers: Path, tmp_path: Path) -> None:
    network, vectors = ours("bert", answers, tmp_path / "bert")
    with torch.inference_mode():
        computed = {"out": network(vectors["tokens"])}
    assert beyond_tolerance(differences(computed, vectors)) == []


def test_both_towers_of_clip_compute_what_transformers_does(answers: Path, tmp_path: Path) -> None:
    network, vectors = ours("clip", answers, tmp_path / "clip")
    with torch.inference_mode():
        computed = {
            "text": network.encode_text(vectors["tokens"]),
            "image": network.encode_image(vectors["pixels"]),
        }
    assert beyond_tolerance(differences(computed, vectors)) == []
