"""unCLIP beside diffusers' UnCLIPPipeline and UnCLIPImageVariationPipeline, built from parts with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.generator.unclip.conversion.convert import PARTS, convert
from services.generator.unclip.conversion.verify import compare
from services.generator.unclip.model import load_model
from tests.generator.unclip.published import GOLDEN, KARLO_FILES, write_karlo
from tests.generator.unclip.recorded import differences, draw_recorded
from tests.parity.conftest import ask, beyond_tolerance

pytestmark = pytest.mark.parity

# Of the last picture. The first steps magnify a difference of 1e-6 twenty thousandfold where a prediction is within the
# clip range: one pixel in many thousands, and its neighbours after it, may be further away.
CHAIN_TOLERANCE, SHARE_WITHIN = 5e-3, 0.99


def unet(attends: list[bool], **settings: Any) -> dict[str, Any]:
    """The settings of one of diffusers' UNets, with attention at some levels."""
    return {
        "down_block_types": [
            "SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ],
        "up_block_types": [
            "SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]
        ],
        **settings,
    }


def decoder(attends: list[bool], **settings: Any) -> dict[str, Any]:
    fixed = {
        "in_channels": 3,
        "out_channels": 6,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "class_embed_type": "identity",
        "resnet_time_scale_shift": "scale_shift",
    }
    return unet(attends, **fixed | settings)


def super_res(num_levels: int, **settings: Any) -> dict[str, Any]:
    return unet(
        [False] * num_levels, **{"in_channels": 6, "out_channels": 3, "add_attention": False} | settings
    )


def clip(width: int, layers: int, heads: int, projection_dim: int, **settings: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection_dim,
        **settings,
    }


KARLO: dict[str, Any] = {
    "text_encoder": clip(32, 2, 4, 32, vocab_size=535, max_position_embeddings=16),
    "image_encoder": clip(48, 2, 4, 32, image_size=32, patch_size=8),
    "prior": {
        "embedding_dim": 32,
        "num_embeddings": 16,
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "num_layers": 2,
    },
    "text_proj": {"clip_embeddings_dim": 32, "time_embed_dim": 128, "cross_attention_dim": 40},
    "decoder": decoder(
        [False, True],
        sample_size=16,
        block_out_channels=[32, 64],
        layers_per_block=2,
        attention_head_dim=16,
        cross_attention_dim=40,
    ),
    "super_res_first": super_res(2, sample_size=32, block_out_channels=[32, 64], layers_per_block=1),
    "super_res_last": super_res(2, sample_size=32, block_out_channels=[32, 64], layers_per_block=1),
    "prior_scheduler": {
        "prediction_type": "sample",
        "variance_type": "fixed_small_log",
        "clip_sample_range": 5.0,
    },
    "decoder_scheduler": {"prediction_type": "epsilon", "variance_type": "learned_range"},
    "super_res_scheduler": {"prediction_type": "epsilon", "variance_type": "fixed_small_log"},
    "prompt": ["a red house", "the blue car and the tree on the moon in the red house and so on"],
    "num": 1,
    "steps": [5, 4, 7],
    "guidance": [4.0, 8.0],
}
# Heads, levels, widths and lengths of text that no published model has.
ODD = KARLO | {
    "text_encoder": clip(40, 3, 5, 40, vocab_size=535, max_position_embeddings=11),
    "image_encoder": clip(36, 1, 3, 40, image_size=30, patch_size=6),
    "prior": {
        "embedding_dim": 40,
        "num_embeddings": 11,
        "num_attention_heads": 3,
        "attention_head_dim": 24,
        "num_layers": 3,
    },
    "text_proj": {
        "clip_embeddings_dim": 40,
        "time_embed_dim": 160,
        "cross_attention_dim": 56,
        "clip_extra_context_tokens": 3,
    },
    "decoder": decoder(
        [True, False, True],
        sample_size=12,
        block_out_channels=[32, 48, 96],
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=56,
        time_embedding_dim=160,
        norm_num_groups=16,
    ),
    "super_res_first": super_res(
        1, sample_size=28, block_out_channels=[32], layers_per_block=2, resnet_time_scale_shift="scale_shift"
    ),
    "super_res_last": super_res(
        3, sample_size=28, block_out_channels=[32, 32, 64], layers_per_block=1, norm_num_groups=8
    ),
    "prior_scheduler": KARLO["prior_scheduler"] | {"clip_sample_range": 2.5},
    "decoder_scheduler": KARLO["decoder_scheduler"] | {"clip_sample_range": 1.4, "num_train_timesteps": 400},
    "super_res_scheduler": KARLO["super_res_scheduler"]
    | {"clip_sample_range": 2.0, "num_train_timesteps": 50},
    "num": 3,
    "steps": [7, 3, 2],
    "guidance": [1.0, 3.5],
}
# Attention in the middle alone, and no unconditional rows.
MIDDLE = KARLO | {
    "decoder": KARLO["decoder"]
    | decoder([False, False, False], block_out_channels=[32, 32, 64], sample_size=8),
    "text_proj": KARLO["text_proj"] | {"time_embed_dim": 128},
    "prior_scheduler": KARLO["prior_scheduler"] | {"clip_sample": False},
    "prompt": ["a red house"],
    "num": 1,
    "steps": [2, 6, 3],
    "guidance": [1.0, 1.0],
}


def of_pictures(case: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name != "prompt"} | settings


CASES = {
    "karlo": KARLO,
    "odd": ODD,
    "middle": MIDDLE,
    "karlo_variations": of_pictures(KARLO, sizes=[[44, 36]], num=2, steps=[0, 3, 7], guidance=[1.0, 8.0]),
    "odd_variations": of_pictures(ODD, sizes=[[30, 71], [33, 33]], num=1, guidance=[1.0, 3.0]),
    "middle_variations": of_pictures(MIDDLE, sizes=[[24, 24]]),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unclip")
    shutil.copytree(GOLDEN / "tokenizer", folder / "tokenizer")
    for name in CASES:
        (folder / name).mkdir()
    return ask("unclip_oracle", "torch", folder, CASES)


@pytest.fixture(scope="module")
def converted(answers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    for name in CASES:
        for part in PARTS:
            convert(answers / name / "hub" / part, folder / name / part, part)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_network_and_every_step_computes_what_diffusers_does(
    name: str, answers: Path, converted: Path
) -> None:
    golden = answers / name / "golden" / f"{name}.safetensors"
    parts = [part for part in PARTS if part != ("image_encoder" if "prompt" in CASES[name] else "prior")]
    found = [one for part in parts for one in compare(converted / name / part, part, golden)]
    assert beyond_tolerance(found) == []


@pytest.mark.parametrize("name", CASES)
def test_the_stepper_draws_the_pictures_of_diffusers_pipeline(
    name: str, answers: Path, converted: Path
) -> None:
    golden = answers / name / "golden"
    case = json.loads((golden / "cases.json").read_text())["cases"][name]
    pictures = [np.array(Image.open(file)) for file in sorted((answers / name).glob("*.png"))]
    model = load_model(converted / name, device="cpu")
    found = draw_recorded(model, golden / f"{name}.safetensors", case, pictures)
    distances = differences(found, golden / f"{name}.safetensors")
    assert float(distances.quantile(SHARE_WITHIN)) < CHAIN_TOLERANCE


@pytest.mark.parametrize("name", ["karlo", "odd", "middle"])
def test_karlos_own_files_give_the_same_bytes(
    name: str, answers: Path, converted: Path, tmp_path: Path
) -> None:
    write_karlo(answers / name / "hub", tmp_path / "karlo")
    for part, file in KARLO_FILES.items():
        convert(tmp_path / "karlo" / file, tmp_path / part, part)
        for written in ("model.safetensors", "config.json"):
            assert (tmp_path / part / written).read_bytes() == (
                converted / name / part / written
            ).read_bytes()
