"""Writes trained PyTorch parts into the built-in model folders, and reads them back to train on.

float16 on disk, config.json beside, and the manifest of the whole folder.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save
from torch import nn

from services.weights.model_folder import BUILT_IN_FOLDER, read_config, write_atomically, write_manifest
from training.world.prompts import EXAMPLE_PROMPTS, vocabulary
from training.world.scenes import NARROW
from training.world.sprites import NOTICE

NAME = "tiny"
ORIGIN = "trained by this repository's recipes (training/) on scenes that they draw"
LICENCE = "Apache-2.0"

Network = TypeVar("Network", bound=nn.Module)


def model_folder(stage: str) -> Path:
    return BUILT_IN_FOLDER / stage / "models" / NAME


def write_part(
    stage: str,
    part: str,
    network: nn.Module,
    config: Mapping[str, Any],
    files: Mapping[str, str] | None = None,
    *,
    folder: Path | None = None,
) -> Path:
    """Writes config.json, model.safetensors and the tokenizer's `files`, then the folder's manifest."""
    folder = folder or model_folder(stage)
    part_folder = folder / part
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(part_folder / "model.safetensors", save(weights))
    write_atomically(part_folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())
    for name, text in (files or {}).items():
        write_atomically(part_folder / name, text.encode())
    write_stage_manifest(stage, folder)
    return part_folder


def write_stage_manifest(stage: str, folder: Path) -> None:
    write_manifest(
        folder,
        name=NAME,
        stage=stage,
        origin=ORIGIN,
        licence=LICENCE,
        notices=NOTICE,
        vocabulary=vocabulary(NARROW) if stage == "refiner" else {},
        example_prompts=EXAMPLE_PROMPTS if stage == "refiner" else (),
    )


def load_exported(
    stage: str, part: str, make: Callable[[Any], Network], config_class: type, *, folder: Path | None = None
) -> Network:
    """The committed network of a part, in float32, to go on from or to build upon."""
    part_folder = (folder or model_folder(stage)) / part
    raw = read_config(part_folder)
    known = {field.name for field in fields(config_class)}
    network = make(
        config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known})
    )
    weights = load_file(part_folder / "model.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network


def read_files(stage: str, part: str, names: Iterable[str], *, folder: Path | None = None) -> dict[str, str]:
    """The tokenizer's files of an exported part, to be written again beside better weights."""
    part_folder = (folder or model_folder(stage)) / part
    return {name: (part_folder / name).read_text("utf-8") for name in names}
