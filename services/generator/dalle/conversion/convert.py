"""Makes a part of a model folder from the published files of DALL·E Mini or its VQGAN.

Takes both layouts of the Flax checkpoints (layers stacked by `scan`, or one by one), float32 or float16, and reports which
names are missing or left over. The tensors keep their precision.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.families import find_family
from services.generator.dalle.conversion import min_dalle
from services.generator.dalle.conversion.flax_file import FlaxArray, read_flax_file
from services.generator.dalle.networks import dalle_parameters, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig
from services.generator.dalle.parameters import FILE_NAME, TensorSpec, write_parameters
from services.generator.dalle.text.normalizer import WORD_LIST_NAME
from services.weights.model_folder import check_names, read_config, write_atomically

PARTS = find_family("generator", "dalle").parts
# As min-dalle publishes mini's, beside mega's.
MINI_TEXT_FILES = {"vocab.json": "vocab_mini.json", "merges.txt": "merges_mini.txt"}
FLAX_FILE_NAME = "flax_model.msgpack"
# The word list is the text normalizer's, for splitting hashtags; the others are the tokenizer's.
TEXT_FILES = ("tokenizer.json", "vocab.json", "merges.txt", WORD_LIST_NAME)


# Far beyond any published network.
MAX_LAYERS = 1_000


class Source(NamedTuple):
    """Where a tensor of ours is in the file: an array, or one layer of an array of all layers."""

    name: str
    layer: int | None


def convert(source: Path, part_folder: Path, part: str) -> None:
    """Writes config.json, model.safetensors and what tokenizer files there are into `part_folder`.

    `source` is the folder of the published files, or the msgpack file with config.json beside it; or min-dalle's
    encoder.pt and decoder.pt, or detoker.pt, which need none. Raises ModelError.
    """
    if part not in PARTS:
        raise ModelError(f"expected a part of the generator ({', '.join(PARTS)}), got '{part}'")
    if files := min_dalle.find_files(source, part):
        _convert_min_dalle(files, part_folder, part)
        return
    path = source if source.is_file() else source / FLAX_FILE_NAME
    raw_config = read_config(path.parent)
    _check_size(raw_config, path.parent)
    arrays = read_flax_file(path)
    if part == "dalle":
        shapes = dalle_parameters.parameter_shapes(DalleConfig.from_json(raw_config))
        sources = dalle_sources(arrays)
    else:
        shapes = vqgan.parameter_shapes(vqgan.VqganConfig.from_json(raw_config))
        sources = {name.replace("/", "."): Source(name, None) for name in arrays}
    check_names(str(path), shapes, {ours: _shape(arrays, source) for ours, source in sources.items()})
    specs = {
        name: TensorSpec(shape, _stored_dtype(arrays[sources[name].name])) for name, shape in shapes.items()
    }
    write_parameters(part_folder / FILE_NAME, specs, lambda name: _read(arrays, sources[name]))
    _finish(path.parent, part_folder, part, raw_config)


def _convert_min_dalle(files: list[Path], part_folder: Path, part: str) -> None:
    folder = files[0].parent
    raw_config = read_config(folder) if (folder / "config.json").is_file() else {}
    _check_size(raw_config, folder)
    if part == "dalle":
        raw_config, tensors = min_dalle.read_dalle(files, raw_config)
        shapes = dalle_parameters.parameter_shapes(DalleConfig.from_json(raw_config))
    else:
        raw_config, tensors = min_dalle.read_vqgan(files, raw_config)
        shapes = vqgan.parameter_shapes(vqgan.VqganConfig.from_json(raw_config))
    check_names(str(files[0]), shapes, {name: tensor.shape for name, tensor in tensors.items()})
    specs = {
        name: TensorSpec(shape, "float16" if tensors[name].dtype == "F16" else "float32")
        for name, shape in shapes.items()
    }
    write_parameters(part_folder / FILE_NAME, specs, lambda name: tensors[name].load())
    _finish(folder, part_folder, part, raw_config)


def _finish(source: Path, part_folder: Path, part: str, raw_config: Mapping[str, Any]) -> None:
    """The tokenizer's files, then the configuration: a part that has it is whole."""
    for name in TEXT_FILES:
        if (source / name).is_file() and part == "dalle":
            shutil.copyfile(source / name, part_folder / name)
        elif part == "dalle" and name in MINI_TEXT_FILES and (source / MINI_TEXT_FILES[name]).is_file():
            shutil.copyfile(source / MINI_TEXT_FILES[name], part_folder / name)
    write_atomically(part_folder / "config.json", json.dumps(raw_config, indent=1).encode())


_ATTENTIONS = ("self_attention", "cross_attention")
_LAYER = re.compile(r"model/(encoder|decoder)/layers/FlaxBart(?:En|De)coderLayer(?:s|_(\d+))/(.+)")
_LAYER_NORM = re.compile(r"LayerNorm_(\d)/(\w+)")
_ATTENTION = re.compile(r"FlaxBartAttention_([01])/(q|k|v|out)_proj/(\w+)")
_FFN = re.compile(r"(GLU|FFN)_0/(LayerNorm|Dense)_(\d)/(\w+)")
_FFN_NAMES = {
    "LayerNorm": ("pre_norm", "mid_norm"),
    "GLU": ("gate", "up", "down"),
    "FFN": ("up", "down"),
}
_OUTSIDE_LAYERS = {
    "embed_tokens/embedding": "embed_tokens",
    "embed_positions/embedding": "embed_positions",
    "layernorm_embedding/scale": "embed_norm.scale",
    "layernorm_embedding/bias": "embed_norm.bias",
    "final_ln/scale": "final_norm.scale",
    "final_ln/bias": "final_norm.bias",
}


def dalle_sources(arrays: Mapping[str, FlaxArray]) -> dict[str, Source]:
    """Maps our names to the published ones; a name that means nothing here stands for itself."""
    sources = {}
    for name, array in arrays.items():
        if match := _LAYER.fullmatch(name):
            part, layer, rest = match.groups()
            ours = _layer_name(rest)
            if ours and layer is not None:
                sources[f"{part}.layers.{layer}.{ours}"] = Source(name, None)
                continue
            if ours and array.shape and array.shape[0] <= MAX_LAYERS:
                for i in range(array.shape[0]):
                    sources[f"{part}.layers.{i}.{ours}"] = Source(name, i)
                continue
        _, _, below = name.partition("model/")
        part, _, rest = below.partition("/")
        if name == "lm_head/kernel":
            sources["lm_head.kernel"] = Source(name, None)
        elif rest in _OUTSIDE_LAYERS and name.startswith("model/"):
            sources[f"{part}.{_OUTSIDE_LAYERS[rest]}"] = Source(name, None)
        else:
            sources[name] = Source(name, None)
    return sources


def _layer_name(name: str) -> str | None:
    """The name inside a layer: LayerNorms 0 and 1 surround the self-attention, 2 and 3 the cross-attention."""
    if match := _LAYER_NORM.fullmatch(name):
        norms = [f"{attention}.{norm}" for attention in _ATTENTIONS for norm in ("pre_norm", "post_norm")]
        return f"{norms[int(match[1])]}.{match[2]}" if int(match[1]) < len(norms) else None
    if match := _ATTENTION.fullmatch(name):
        return f"{_ATTENTIONS[int(match[1])]}.{match[2]}.{match[3]}"
    if match := _FFN.fullmatch(name):
        kind, layer, index, leaf = match.groups()
        ffn_names = _FFN_NAMES["LayerNorm" if layer == "LayerNorm" else kind]
        return f"ffn.{ffn_names[int(index)]}.{leaf}" if int(index) < len(ffn_names) else None
    return None


def _shape(arrays: Mapping[str, FlaxArray], source: Source) -> tuple[int, ...]:
    shape = arrays[source.name].shape
    return shape if source.layer is None else shape[1:]


def _read(arrays: Mapping[str, FlaxArray], source: Source) -> NDArray[Any]:
    return arrays[source.name].read(source.layer)


def _check_size(raw_config: Mapping[str, Any], folder: Path) -> None:
    """Checked before a list of the configured length is allocated."""
    for name in ("encoder_layers", "decoder_layers", "num_res_blocks"):
        if isinstance(found := raw_config.get(name, 0), int) and found > MAX_LAYERS:
            raise ModelError(f"{folder / 'config.json'}: {name}: expected at most {MAX_LAYERS}, got {found}")


def _stored_dtype(array: FlaxArray) -> str:
    return "float16" if array.dtype == np.float16 else "float32"
