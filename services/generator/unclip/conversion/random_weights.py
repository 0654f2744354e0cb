"""Random weights in a known unCLIP's shape: speed and memory can be measured before gigabytes are fetched.

The pictures they make are noise. Tensor by tensor, float16.
"""

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.generator.unclip.model import (
    NETWORKS,
    Config,
    DecoderPart,
    PriorPart,
    SuperResPart,
)
from services.generator.unclip.networks.prior import PriorConfig
from services.generator.unclip.networks.text_projection import TextProjectionConfig
from services.generator.unclip.networks.unet import UNetConfig
from services.generator.unclip.schedule import DiffusionConfig
from services.pytorch.clip import ClipConfig
from services.pytorch.clip_tokenizer import clip_merges, clip_tokenizer_files, clip_vocab
from services.pytorch.parts import config_to_json, empty_network, shapes
from services.weights.formats.safetensors_file import LazyTensor, write_safetensors

DRAWN_TOGETHER = 1 << 20  # weights

_TINY_PIXELS = DiffusionConfig(num_steps=8, guidance_scale=2.0, predicts="epsilon", clip_range=1.0)
_TINY_SUPER_RES = SuperResPart(
    UNetConfig(
        image_size=64,
        in_channels=6,
        out_channels=3,
        channels=(16, 32),
        num_res_blocks=1,
        attention_levels=(),
        has_scale=False,
        norm_groups=8,
    ),
    DiffusionConfig(num_steps=3, guidance_scale=1.0, predicts="epsilon", clip_range=1.0),
)
TINY: dict[str, Config] = {
    "text_encoder": ClipConfig(
        embed_dim=32,
        vocab_size=len(clip_vocab(clip_merges())),
        context_length=16,
        transformer_width=32,
        transformer_layers=1,
        transformer_heads=2,
        vision_layers=0,
    ),
    "image_encoder": ClipConfig(
        embed_dim=32, image_size=32, vision_patch_size=8, vision_width=32, vision_layers=1, vision_heads=2
    ),
    "prior": PriorPart(
        PriorConfig(embed_dim=32, context_length=16, num_layers=1, num_heads=2, head_dim=16),
        DiffusionConfig(num_steps=6, guidance_scale=2.0),
    ),
    "text_proj": TextProjectionConfig(embed_dim=32, text_width=32, context_dim=32, time_embed_dim=64),
    "decoder": DecoderPart(
        UNetConfig(
            image_size=16,
            in_channels=3,
            out_channels=3,
            channels=(16, 32),
            num_res_blocks=1,
            attention_levels=(1,),
            head_dim=16,
            context_dim=32,
            norm_groups=8,
        ),
        _TINY_PIXELS,
    ),
    "super_res_first": _TINY_SUPER_RES,
    "super_res_last": _TINY_SUPER_RES,
}
FAMILIES: dict[str, dict[str, Config]] = {
    "karlo": {
        "text_encoder": ClipConfig(vision_layers=0),
        "image_encoder": ClipConfig(),
        "prior": PriorPart(),
        "text_proj": TextProjectionConfig(),
        "decoder": DecoderPart(),
        "super_res_first": SuperResPart(),
        "super_res_last": SuperResPart(),
    },
    "tiny-unclip": TINY,
}
NAMES = tuple(FAMILIES)


def write_random(name: str, folder: Path, *, seed: int = 0) -> None:
    """Writes all parts into `folder`; raises ModelError for an unknown name."""
    if name not in FAMILIES:
        raise ModelError(f"no unCLIP family '{name}': expected one of {', '.join(NAMES)}")
    for part, config in FAMILIES[name].items():
        write_random_part(part, config, folder / part, seed=seed)


def write_random_part(part: str, config: Any, part_folder: Path, *, seed: int = 0) -> None:
    network = empty_network(NETWORKS[part][1], config, part_folder, part)
    tensors = {
        name: LazyTensor("F16", shape, partial(_random, f"{part}/{name}", shape, seed))
        for name, shape in shapes(network).items()
    }
    write_safetensors(part_folder / "model.safetensors", tensors)
    (part_folder / "config.json").write_text(config_to_json(config), "utf-8")
    if part == "text_encoder":
        for name, data in clip_tokenizer_files(part_folder, config.vocab_size).items():
            (part_folder / name).write_bytes(data)


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float16]:
    """Keeps the variance of what flows through: norms are the identity, matrices divide by their fan-in."""
    leaf = name.rpartition("/")[2]
    if leaf.endswith("bias") or leaf == "clip_mean":
        return np.zeros(shape, np.float16)
    if leaf == "clip_std" or (len(shape) <= 1 and leaf.endswith("weight")):
        return np.ones(shape, np.float16)
    fan_in = np.prod(shape[1:]) if len(shape) > 1 and "emb" not in leaf else shape[-1]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    weights = np.empty(shape, np.float16)
    # A part at a time: the largest tensor in float32 would take twice its size beside it.
    flat, scale = weights.reshape(-1), np.float32(float(fan_in) ** 0.5)
    for start in range(0, flat.size, DRAWN_TOGETHER):
        part = flat[start : start + DRAWN_TOGETHER]
        part[:] = rng.standard_normal(part.size, dtype=np.float32) / scale
    return weights
