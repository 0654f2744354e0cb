"""Writes the parts of tiny-unclip into its model folder, and reads them back to train on.

float16 on disk, config.json beside, and the manifest of the whole folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import nn

from services.generator.unclip.model import NETWORKS
from services.pytorch import parts
from services.pytorch.clip import Clip, ClipConfig
from services.pytorch.clip_tokenizer import Tokenizer, clean_clip_text, read_merges
from services.weights.model_folder import BUILT_IN_FOLDER, write_atomically, write_manifest
from training.export import LICENCE, ORIGIN
from training.refiner.train_wordpieces import clip_tokenizer
from training.world.prompts import EXAMPLE_PROMPTS, vocabulary
from training.world.scenes import NARROW
from training.world.sprites import NOTICE

NAME = "tiny-unclip"
FOLDER = BUILT_IN_FOLDER / "generator" / "models" / NAME


def write_part(
    part: str,
    network: nn.Module,
    config: Any,
    files: Mapping[str, str] | None = None,
    *,
    folder: Path = FOLDER,
) -> None:
    """Writes config.json, model.safetensors and the tokenizer's `files`, then the folder's manifest."""
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(folder / part / "model.safetensors", save(weights))
    write_atomically(folder / part / "config.json", parts.config_to_json(config).encode())
    for name, text in (files or {}).items():
        write_atomically(folder / part / name, text.encode())
    write_manifest(
        folder,
        name=NAME,
        stage="generator",
        architecture="unclip",
        origin=ORIGIN,
        licence=LICENCE,
        notices=NOTICE,
        vocabulary=vocabulary(NARROW),
        example_prompts=EXAMPLE_PROMPTS,
    )


def write_clip(clip: Clip, files: Mapping[str, str], *, folder: Path = FOLDER) -> None:
    """Both towers, each a part of its own; the scale of the contrast is not needed any more."""
    text = {name: tensor for name, tensor in clip.state_dict().items() if _is_of_text(name)}
    tower = NETWORKS["text_encoder"][1](clip.config)
    tower.load_state_dict(text)
    write_part("text_encoder", tower, clip.config, files, folder=folder)
    write_part("image_encoder", clip.visual, clip.config, folder=folder)


def read_clip(folder: Path = FOLDER) -> tuple[Clip, Tokenizer]:
    """The exported towers in float32, and their tokenizer."""
    config = parts.read_part_config(folder / "text_encoder", ClipConfig)
    clip = Clip(config)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    picture = load_file(folder / "image_encoder" / "model.safetensors")
    state = {**text, **{f"visual.{name}": tensor for name, tensor in picture.items()}}
    clip.load_state_dict(
        {name: tensor.float() for name, tensor in state.items()} | {"logit_scale": clip.logit_scale}
    )
    merges = read_merges((folder / "text_encoder" / "merges.txt").read_text("utf-8"))
    return clip, Tokenizer(clip_tokenizer(merges), config.context_length, clean=clean_clip_text)


def restore(network: nn.Module, part: str, *, folder: Path = FOLDER) -> None:
    """Gives the network the exported weights of a part, to go on from."""
    weights = load_file(folder / part / "model.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def _is_of_text(name: str) -> bool:
    return not name.startswith("visual.") and name != "logit_scale"
