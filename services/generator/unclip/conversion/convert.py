"""Turns the published files of Karlo into parts of a model folder: config.json, model.safetensors, tokenizer files.

Takes the hub's layout (a folder a part, safetensors or .bin, config.json inside, its scheduler beside) and Karlo's own
.ckpt files. Both give the same tensors. Nothing in a checkpoint is executed, every name in it is used or known to
be of no use, and numbers keep their type.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.errors import ModelError
from services.generator.unclip.conversion import names
from services.generator.unclip.conversion.hub_config import part_config
from services.generator.unclip.model import NETWORKS, Config, DecoderPart, PriorPart, SuperResPart
from services.pytorch.clip_conversion import to_openai
from services.pytorch.clip_tokenizer import clip_tokenizer_files, read_clip_tokenizer
from services.pytorch.parts import config_to_json, empty_network, shapes
from services.weights.formats.safetensors_file import LazyTensor, write_safetensors
from services.weights.formats.torch_checkpoint import MODULE_PACKAGES, read_tensors
from services.weights.formats.weights_file import check_floating_point, find_weights_file
from services.weights.model_folder import check_names

PARTS = tuple(NETWORKS)
WEIGHT_FILES = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
# What Karlo's files put before the names of a part. One file holds the decoder and the text projection, another both
# networks of super-resolution.
PREFIXES = {
    "prior": "model.",
    "decoder": "model.",
    "text_proj": "model.",
    "super_res_first": "model_first_steps.",
    "super_res_last": "model_last_step.",
}
STATS_FILES = ("ViT-L-14_stats.th", "stats.th")
UNUSED = r"(input_resolution|context_length|vocab_size|logit_scale)$|.*\.(position_ids|attn_mask)$"
# Folder of the tokenizer, and of each scheduler, beside those of the hub's parts.
SCHEDULERS = {
    "prior": "prior_scheduler",
    "decoder": "decoder_scheduler",
    "super_res_first": "super_res_scheduler",
    "super_res_last": "super_res_scheduler",
}

Tensors = dict[str, LazyTensor]


def convert(source: Path, part_folder: Path, part: str) -> None:
    """Converts one published file, or a folder that holds one. Raises ModelError."""
    if part not in PARTS:
        raise ModelError(f"no part '{part}' in an unCLIP: expected one of {', '.join(PARTS)}")
    file = find_weights_file(source, WEIGHT_FILES, [source / part])
    published = read_tensors(file, packages=MODULE_PACKAGES)
    config, tensors = rename(published, part, _settings(file, part), _scheduler(file, part), file)
    write_safetensors(part_folder / "model.safetensors", tensors)
    (part_folder / "config.json").write_text(config_to_json(config), "utf-8")
    if part == "text_encoder":
        _write_tokenizer(file.parent, part_folder, config)


def rename(
    published: Tensors, part: str, settings: dict[str, Any], scheduler: dict[str, Any], file: Path
) -> tuple[Config, Tensors]:
    """The configuration of a part, and its tensors under our names and in our order; none is read yet.

    `settings` and `scheduler` are the hub's JSON, empty where there is none. Raises ModelError.
    """
    own, is_karlo = _own(part, published, file)
    config = part_config(part, own, settings, scheduler, file)
    expected = shapes(empty_network(NETWORKS[part][1], config, file, part))
    found, used = names.take(own, _origins(part, config, list(expected), is_karlo))
    left_over = {name: tensor.shape for name, tensor in own.items() if name not in used}
    check_names(str(file), expected, {name: tensor.shape for name, tensor in found.items()} | left_over)
    check_floating_point(found, file)
    return config, {name: found[name] for name in expected}


def _own(part: str, found: Tensors, file: Path) -> tuple[Tensors, bool]:
    """The tensors of this part, without what the file holds besides, and whether they have Karlo's names."""
    if part in ("text_encoder", "image_encoder"):
        renamed = to_openai(
            {name: tensor for name, tensor in found.items() if not re.match(UNUSED, name)}, str(file)
        )
        is_of_image = part == "image_encoder"
        return {n: t for n, t in renamed.items() if n.startswith("visual.") == is_of_image}, False
    prefix = PREFIXES[part]
    karlo = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    if not karlo:
        return found, False
    if part in ("decoder", "text_proj"):
        projection = {name for origin in names.karlo_text_projection().values() for name in origin.names}
        karlo = {n: t for n, t in karlo.items() if (n in projection) == (part == "text_proj")}
    if part == "prior":
        karlo |= _stats(file)
    other = {n for n in found if not n.startswith(tuple(PREFIXES.values()))}
    return karlo | {name: found[name] for name in other}, True


def _stats(file: Path) -> Tensors:
    """Mean and deviation of the embeddings of pictures, which Karlo keeps in a file of their own."""
    for name in STATS_FILES:
        if (path := file.parent / name).is_file():
            pair = read_tensors(path)
            if set(pair) == {"mean", "std"}:
                pair = {"0": pair["mean"], "1": pair["std"]}
            if set(pair) != {"0", "1"}:
                raise ModelError(
                    f"{path}: expected a pair of mean and deviation, got {', '.join(sorted(pair))}"
                )
            return {"clip_mean": _as_row(pair["0"]), "clip_std": _as_row(pair["1"])}
    raise ModelError(
        f"{file.parent} holds no {STATS_FILES[0]}: Karlo's prior needs the mean and deviation of embeddings; put it "
        "beside the .ckpt file"
    )


def _as_row(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.dtype, (1, tensor.shape[-1]), lambda: tensor.load().reshape(1, -1))


def _origins(part: str, config: Config, ours: list[str], is_karlo: bool) -> Mapping[str, names.Origin]:
    if part == "image_encoder":
        return {name: names.Origin((f"visual.{name}",)) for name in ours}
    if isinstance(config, PriorPart) and is_karlo:
        return names.karlo_prior(config.network) | names.same(["clip_mean", "clip_std"])
    if part == "text_proj" and is_karlo:
        return names.karlo_text_projection()
    if isinstance(config, DecoderPart | SuperResPart):
        return names.karlo_unet(config.network, ours) if is_karlo else names.hub_unet(config.network)
    return names.same(ours)


def _settings(file: Path, part: str) -> dict[str, Any]:
    """The hub's config.json beside a file, or in a folder of the part's name there; empty when there is none."""
    for path in (file.parent / part / "config.json", file.parent / "config.json"):
        if path.is_file():
            return _json_object(path)
    return {}


def _scheduler(file: Path, part: str) -> dict[str, Any]:
    name = SCHEDULERS.get(part)
    if name is None:
        return {}
    for folder in (file.parent / name, file.parent.parent / name, file.parent):
        if (path := folder / "scheduler_config.json").is_file():
            return _json_object(path)
    return {}


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


def _write_tokenizer(source: Path, part_folder: Path, config: Any) -> None:
    """From beside the source or the hub's folder for it, else the published one if the vocabulary is as large."""
    for folder in (source, source.parent / "tokenizer", source / "tokenizer"):
        if files := clip_tokenizer_files(folder, config.vocab_size):
            break
    else:
        raise ModelError(
            f"{source}: no tokenizer for a vocabulary of {config.vocab_size}: put vocab.json and merges.txt beside the "
            "source, or in a folder tokenizer beside its folder"
        )
    for name, data in files.items():
        (part_folder / name).write_bytes(data)
    read_clip_tokenizer(part_folder, num_tokens=config.context_length, vocab_size=config.vocab_size)
