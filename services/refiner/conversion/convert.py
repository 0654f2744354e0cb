"""Turns a published checkpoint into a part of a model folder: config.json, model.safetensors, tokenizer files.

The configuration is read off the tensors' shapes; what no shape shows (head counts, sizes) comes from a config.json or
configs.json beside the source, else from the published models. Nothing in a checkpoint is executed, every name in
it is used or known to be of no use, and numbers keep their type.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from services.errors import ModelError
from services.families import find_family
from services.pytorch import clip_conversion
from services.pytorch.clip import ClipConfig
from services.pytorch.clip_tokenizer import clip_tokenizer_files
from services.pytorch.parts import config_to_json, shapes
from services.refiner.conversion import infer_config
from services.refiner.model import NETWORKS, Config, empty_network
from services.refiner.networks.text_encoder import TextEncoderConfig
from services.refiner.text.tokenizer import (
    BERT_VOCAB,
    read_tokenizer,
)
from services.weights.formats.safetensors_file import LazyTensor, write_safetensors
from services.weights.formats.torch_checkpoint import MODULE_PACKAGES, read_tensors
from services.weights.formats.weights_file import check_floating_point, find_weights_file
from services.weights.model_folder import check_names

log = logging.getLogger(__name__)

PARTS = find_family("refiner").parts
# Tensors that files hold and no network needs.
UNUSED = {
    "bert": r"transformer\.to_logits\.",
    "clip": r"(input_resolution|context_length|vocab_size)$|.*\.(position_ids|attn_mask)$",
    "unet": r"inpaint:",  # a second first convolution, in the recorded vectors
    "autoencoder": r"loss\.|model_ema\.",
}
# The keys of each part in a configs.json.
CONFIG_KEYS = {"bert": ("bert",), "clip": ("clip",), "unet": ("unet",), "autoencoder": ("autoencoder", "vae")}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


def convert(source: Path, part_folder: Path, part: str) -> None:
    """Converts one published file, or a folder that holds one. Raises ModelError."""
    if part not in PARTS:
        raise ModelError(f"no part '{part}' in a refiner: expected one of {', '.join(PARTS)}")
    file = find_weights_file(source, WEIGHT_FILES)
    found = read_tensors(file, packages=MODULE_PACKAGES if part == "autoencoder" else ())
    tensors = {name: tensor for name, tensor in found.items() if not re.match(UNUSED[part], name)}
    if part == "clip":
        tensors = clip_conversion.to_openai(tensors, str(file))
    config = infer_config.config(part, tensors, _settings_beside(file, part), str(file))
    _check(file, part, config, tensors)
    write_safetensors(part_folder / "model.safetensors", tensors)
    (part_folder / "config.json").write_text(config_to_json(config), "utf-8")
    if isinstance(config, TextEncoderConfig | ClipConfig):
        _write_tokenizer(file.parent, part_folder, config)


def _check(file: Path, part: str, config: Config, tensors: Mapping[str, LazyTensor]) -> None:
    network = empty_network(part, config, file)
    check_names(str(file), shapes(network), {name: tensor.shape for name, tensor in tensors.items()})
    check_floating_point(tensors, file)


def _settings_beside(file: Path, part: str) -> dict[str, Any]:
    """What a config.json, a configs.json or the vectors beside a checkpoint say of its configuration."""
    known = {field.name for field in fields(NETWORKS[part][0])}
    settings: dict[str, Any] = {}
    if (path := file.parent / "configs.json").is_file():
        for key in CONFIG_KEYS[part]:
            settings |= _json_object(path).get(key) or {}
    if (path := file.parent / "config.json").is_file():
        settings |= _json_object(path)
    if part == "clip" and (path := file.with_suffix(".npz")).is_file():
        with np.load(path, allow_pickle=False) as arrays:
            if "heads" in arrays.files:
                settings.setdefault("transformer_heads", int(arrays["heads"]))
    return {name: value for name, value in settings.items() if name in known}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} is no JSON: {error}; mend it or take it away from beside the source"
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _write_tokenizer(source: Path, part_folder: Path, config: TextEncoderConfig | ClipConfig) -> None:
    """Takes the tokenizer from beside the source, else the published one if the vocabulary is as large as its."""
    part = "bert" if isinstance(config, TextEncoderConfig) else "clip"
    files = (
        _bert_files(source, config) if isinstance(config, TextEncoderConfig) else _clip_files(source, config)
    )
    if not files:
        log.warning(
            "no tokenizer for the %s part: its vocabulary of %d is not the published one. It cannot be served so: put "
            "tokenizer.json, or %s, beside the source and convert it again",
            part, config.vocab_size, "vocab.txt" if part == "bert" else "vocab.json and merges.txt",
        )  # fmt: skip
        return
    for name, data in files.items():
        (part_folder / name).write_bytes(data)
    num_tokens = config.max_seq_len if isinstance(config, TextEncoderConfig) else config.context_length
    read_tokenizer(part_folder, num_tokens=num_tokens, vocab_size=config.vocab_size)


def _bert_files(source: Path, config: TextEncoderConfig) -> dict[str, bytes]:
    for name in ("vocab.txt", "tokenizer.json"):
        if (source / name).is_file():
            return {name: (source / name).read_bytes()}
    if config.vocab_size == TextEncoderConfig().vocab_size:
        return {"vocab.txt": BERT_VOCAB.read_bytes()}
    return {}


def _clip_files(source: Path, config: ClipConfig) -> dict[str, bytes]:
    if files := clip_tokenizer_files(source, config.vocab_size):
        return files
    if (source / "vocab.txt").is_file():
        return {"vocab.txt": (source / "vocab.txt").read_bytes()}
    return {}
