"""Names and shapes of Karlo as it is published, in both layouts, make our networks of its size; no weights."""

import json

import numpy as np
import pytest
import torch

from services.generator.unclip.conversion.convert import PARTS, rename
from services.generator.unclip.conversion.random_weights import FAMILIES
from services.generator.unclip.model import NETWORKS
from services.pytorch.parts import empty_network, shapes
from services.weights.formats.safetensors_file import LazyTensor
from tests.generator.unclip.published import GOLDEN, KARLO_FILES

KARLO = FAMILIES["karlo"]
SHAPES = json.loads((GOLDEN / "published_shapes.json").read_text())
# What the hub's config.json say of Karlo's UNets beyond the golden ones, and what is in each of Karlo's files.
UNETS = {
    "decoder": {
        "sample_size": 64,
        "block_out_channels": [320, 640, 960, 1280],
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "cross_attention_dim": 1536,
        "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    },
    "super_res_first": {
        "sample_size": 256,
        "block_out_channels": [320, 640, 960, 1280],
        "layers_per_block": 3,
        "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
        "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
    },
}
UNETS["super_res_last"] = UNETS["super_res_first"]
CONTENTS = {
    "prior": {"prior": "model."},
    "decoder": {"decoder": "model."},
    "text_proj": {"decoder": "model."},
    "super_res_first": {"sr_first": "model_first_steps.", "sr_last": "model_last_step."},
    "super_res_last": {"sr_first": "model_first_steps.", "sr_last": "model_last_step."},
}


def unread(layout, network, prefix=""):
    return {
        f"{prefix}{name}": LazyTensor("F32", tuple(shape), lambda: np.empty(0))
        for name, shape in SHAPES[layout][network].items()
    }


def settings_of(part):
    golden = json.loads((GOLDEN / "config" / part / "config.json").read_text())
    return golden | UNETS[part] if part in UNETS else {}


def check(config, tensors, part):
    assert config == KARLO[part]
    expected = shapes(empty_network(NETWORKS[part][1], KARLO[part], GOLDEN, part))
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize("part", PARTS)
def test_the_hubs_folders_are_our_networks(part):
    check(*rename(unread("hub", part), part, settings_of(part), {}, GOLDEN), part)


@pytest.mark.parametrize("part", KARLO_FILES)
def test_karlos_own_files_are_our_networks_without_a_configuration(part, tmp_path):
    torch.save((torch.zeros(768), torch.ones(768)), tmp_path / "stats.th")
    published = {}
    for network, prefix in CONTENTS[part].items():
        published |= unread("karlo", network, prefix)
    check(*rename(published, part, {}, {}, tmp_path / "file.ckpt"), part)
