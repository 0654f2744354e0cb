"""Random weights in the shapes of known generators, to measure speed and memory before gigabytes are fetched.

Written tensor by tensor. The published shapes are float16 files, except mega_full, which is mega in float32.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from services.errors import ModelError
from services.generator.dalle.networks import dalle_parameters, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig
from services.generator.dalle.parameters import FILE_NAME, TensorSpec, write_parameters
from services.weights.model_folder import write_atomically

_MINI = {
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 2730,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 2730,
    "encoder_vocab_size": 50264,
    "image_vocab_size": 16384,
    "image_length": 256,
    "max_text_length": 64,
    "decoder_start_token_id": 16384,
    "normalize_text": True,
    "use_glu": True,
}
_MEGA = _MINI | {
    "d_model": 2048,
    "encoder_layers": 24,
    "encoder_attention_heads": 32,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 24,
    "decoder_attention_heads": 32,
    "decoder_ffn_dim": 4096,
    "encoder_vocab_size": 50272,
    "image_vocab_size": 16415,
}
_TINY = _MINI | {
    "d_model": 256,
    "encoder_layers": 2,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 512,
    "decoder_layers": 4,
    "decoder_attention_heads": 8,
    "decoder_ffn_dim": 512,
    "encoder_vocab_size": 1024,
    "image_vocab_size": 2048,
    "max_text_length": 32,
    "decoder_start_token_id": 2048,
}
_VQGAN_F16_16384 = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "resolution": 256,
    "z_channels": 256,
    "embed_dim": 256,
    "n_embed": 16384,
}
_VQGAN_TINY = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "resolution": 128,
    "z_channels": 16,
    "embed_dim": 16,
    "n_embed": 2048,
    "norm_num_groups": 8,
}

# The dalle's configuration, the vqgan's, and the type of the dalle's numbers.
FAMILIES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "tiny": (_TINY, _VQGAN_TINY, "float16"),
    "mini": (_MINI, _VQGAN_F16_16384, "float16"),
    "mega": (_MEGA, _VQGAN_F16_16384, "float16"),
    "mega_full": (_MEGA, _VQGAN_F16_16384, "float32"),
}
NAMES = tuple(FAMILIES)


def write_random(name: str, folder: Path, *, seed: int = 0) -> None:
    """Writes FOLDER/dalle and FOLDER/vqgan; the same seed gives the same bytes."""
    if name not in FAMILIES:
        raise ModelError(f"no generator is called '{name}': expected one of {', '.join(NAMES)}")
    dalle_config, vqgan_config, dtype = FAMILIES[name]
    write_random_dalle(folder / "dalle", dalle_config, dtype=dtype, seed=seed)
    write_random_vqgan(folder / "vqgan", vqgan_config, seed=seed)


def write_random_dalle(
    part_folder: Path, raw_config: Mapping[str, Any], *, dtype: str = "float16", seed: int = 0
) -> None:
    """A part `dalle` of the given config.json, with a tokenizer that knows single bytes."""
    shapes = dalle_parameters.parameter_shapes(DalleConfig.from_json(raw_config))
    _write_part(part_folder, raw_config, shapes, dtype, seed)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    write_atomically(part_folder / "vocab.json", json.dumps(vocab).encode())
    write_atomically(part_folder / "merges.txt", b"#version: 0.2\n")


def write_random_vqgan(
    part_folder: Path, raw_config: Mapping[str, Any], *, dtype: str = "float16", seed: int = 0
) -> None:
    """A part `vqgan` of the given config.json."""
    shapes = vqgan.parameter_shapes(vqgan.VqganConfig.from_json(raw_config))
    _write_part(part_folder, raw_config, shapes, dtype, seed)


def _write_part(
    part_folder: Path,
    raw_config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    seed: int,
) -> None:
    specs = {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}
    write_parameters(part_folder / FILE_NAME, specs, lambda name: _draw(name, shapes[name], seed))
    write_atomically(part_folder / "config.json", json.dumps(raw_config, indent=1).encode())


def _draw(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Weights that keep the size of what passes through them, biases near nothing, norms near doing nothing."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = rng.standard_normal(shape, np.float32)
    if name.endswith(".scale"):
        return 1 + np.float32(0.02) * noise
    if name.endswith(".bias"):
        return np.float32(0.02) * noise
    if name.endswith(".kernel"):
        return noise * np.float32(np.prod(shape[:-1]) ** -0.5)
    return noise  # embeddings
