"""Random weights in a known family's shape: speed and memory can be measured before gigabytes are fetched.

The pictures they make are noise. Tensor by tensor, float16.
"""

import string
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.pytorch.clip import ClipConfig
from services.pytorch.clip_tokenizer import clip_tokenizer_files
from services.pytorch.parts import config_to_json, shapes
from services.refiner.model import Config, empty_network
from services.refiner.networks.autoencoder import AutoencoderConfig
from services.refiner.networks.text_encoder import TextEncoderConfig
from services.refiner.networks.unet import UNetConfig
from services.refiner.text.tokenizer import BERT_VOCAB
from services.weights.formats.safetensors_file import LazyTensor, write_safetensors

# A vocabulary that spells every English prompt; its last word ends a text, as CLIP needs it.
SPELLING = [
    "[PAD]", "[UNK]", "[CLS]", "[MASK]",
    *(string.ascii_lowercase + string.digits + string.punctuation),
    *(f"##{letter}" for letter in string.ascii_lowercase + string.digits),
    "[SEP]",
]  # fmt: skip

TINY: dict[str, Config] = {
    "bert": TextEncoderConfig(
        n_embed=128, n_layer=2, vocab_size=len(SPELLING), max_seq_len=32, heads=4, dim_head=32
    ),
    "clip": ClipConfig(
        embed_dim=64, vocab_size=len(SPELLING), context_length=32, transformer_width=128,
        transformer_layers=2, transformer_heads=4, image_size=128, vision_patch_size=8,
        vision_width=128, vision_layers=2, vision_heads=4,
    ),
    "unet": UNetConfig(
        model_channels=64, channel_mult=(1, 2, 4), num_res_blocks=1, attention_ds=(2, 4), num_heads=4,
        context_dim=128, guided_channels=4,
    ),
    "autoencoder": AutoencoderConfig(image_size=128, ch=32, ch_mult=(1, 1, 2, 4), num_res_blocks=1),
}  # fmt: skip


def _glid_3_xl(unet: UNetConfig) -> dict[str, Config]:
    return {
        "bert": TextEncoderConfig(),
        "clip": ClipConfig(),
        "unet": unet,
        "autoencoder": AutoencoderConfig(),
    }


FAMILIES: dict[str, dict[str, Config]] = {
    "glid-3-xl": _glid_3_xl(UNetConfig()),
    "glid-3-xl-finetuned": _glid_3_xl(UNetConfig(clip_embed_dim=768)),
    "glid-3-xl-inpaint": _glid_3_xl(UNetConfig(in_channels=8, clip_embed_dim=768)),
    "tiny": TINY,
}
NAMES = tuple(FAMILIES)


def write_random(name: str, folder: Path, *, seed: int = 0) -> None:
    """Writes all four parts into `folder`; raises ModelError for an unknown name."""
    if name not in FAMILIES:
        raise ModelError(f"no refiner family '{name}': expected one of {', '.join(NAMES)}")
    for part, config in FAMILIES[name].items():
        write_random_part(part, config, folder / part, seed=seed)


def write_random_part(part: str, config: Config, part_folder: Path, *, seed: int = 0) -> None:
    network = empty_network(part, config, part_folder)
    tensors = {
        name: LazyTensor("F16", shape, partial(_random, f"{part}/{name}", shape, seed))
        for name, shape in shapes(network).items()
    }
    write_safetensors(part_folder / "model.safetensors", tensors)
    (part_folder / "config.json").write_text(config_to_json(config), "utf-8")
    if isinstance(config, TextEncoderConfig | ClipConfig):
        _write_tokenizer(config, part_folder)


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float16]:
    """Keeps the variance of what flows through: norms are the identity, matrices divide by their fan-in."""
    if name.endswith("bias"):
        return np.zeros(shape, np.float16)
    if len(shape) <= 1 and name.endswith("weight"):
        return np.ones(shape, np.float16)
    if not shape:
        return np.array(np.log(100.0), np.float16)  # CLIP's temperature, as published
    fan_in = np.prod(shape[1:]) if len(shape) > 1 and "emb" not in name.rpartition("/")[2] else shape[-1]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = rng.standard_normal(shape, dtype=np.float32) / np.float32(float(fan_in) ** 0.5)
    return noise.astype(np.float16)


def _write_tokenizer(config: TextEncoderConfig | ClipConfig, part_folder: Path) -> None:
    if config.vocab_size == len(SPELLING):
        (part_folder / "vocab.txt").write_text("\n".join(SPELLING) + "\n", "utf-8")
    elif isinstance(config, TextEncoderConfig):
        (part_folder / "vocab.txt").write_bytes(BERT_VOCAB.read_bytes())
    else:
        for name, data in clip_tokenizer_files(part_folder, config.vocab_size).items():
            (part_folder / name).write_bytes(data)
