"""min-dalle's PyTorch files as a part of a model folder: encoder.pt and decoder.pt, or detoker.pt.

Those files are DALL·E Mini's and its VQGAN's numbers under other names (github.com/kuprel/min-dalle, min_dalle/models): a
Linear is (out, in), a convolution (out, in, height, width), and a norm's scale is its `weight`. They have no config.json, so
the shape is read off the tensors; what cannot be seen in them is as in the published models. detoker.pt has the half of the
VQGAN that decodes.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.generator.dalle.networks.dalle_parameters import DalleConfig, parameter_shapes
from services.weights.formats.safetensors_file import LazyTensor
from services.weights.formats.torch_checkpoint import read_tensors

# Mini's files have this in their names where they are published, and not where min-dalle keeps them.
SUFFIXES = ("", "_mini")
HEAD_DIM = 64
# Of the published VQGAN; image tokens from there on are the start token and padding.
NUM_CODES = 2**14
VQGAN_CONFIG: Mapping[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "resolution": 256,
    "z_channels": 256,
    "embed_dim": 256,
    "n_embed": NUM_CODES,
    "has_encoder": False,
}
# As PyTorch names them, inside a layer or outside of all.
_NORMS = {
    "pre_self_attn_layer_norm": "self_attention.pre_norm",
    "self_attn_layer_norm": "self_attention.post_norm",
    "pre_encoder_attn_layer_norm": "cross_attention.pre_norm",
    "encoder_attn_layer_norm": "cross_attention.post_norm",
    "glu.ln0": "ffn.pre_norm",
    "glu.ln1": "ffn.mid_norm",
    "layernorm_embedding": "embed_norm",
    "final_ln": "final_norm",
}
_LINEARS = {
    **{f"self_attn.{one}_proj": f"self_attention.{one}" for one in ("q", "k", "v", "out")},
    **{f"encoder_attn.{one}_proj": f"cross_attention.{one}" for one in ("q", "k", "v", "out")},
    "glu.fc0": "ffn.gate",
    "glu.fc1": "ffn.up",
    "glu.fc2": "ffn.down",
}
_EMBEDDINGS = {"embed_tokens": "embed_tokens", "embed_positions": "embed_positions"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")

Arrays = dict[str, LazyTensor]


def find_files(source: Path, part: str) -> list[Path]:
    """The files of a part in a folder, or beside a file that is named; none where they are not min-dalle's."""
    folder = source if source.is_dir() else source.parent
    names = ("encoder", "decoder") if part == "dalle" else ("detoker",)
    for suffix in SUFFIXES if part == "dalle" else ("",):
        files = [folder / f"{name}{suffix}.pt" for name in names]
        is_named = source.is_dir() or source in files
        if is_named and all(path.is_file() for path in files):
            return files
        if is_named and any(path.is_file() for path in files):
            missing = next(path for path in files if not path.is_file())
            raise ModelError(f"{missing} is missing: expected {' and '.join(path.name for path in files)}")
    return []


def read_dalle(files: list[Path], raw_config: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """The configuration and the tensors by our names. `raw_config` is that of a config.json beside them, or empty."""
    tensors: Arrays = {}
    for path, side in zip(files, ("encoder", "decoder"), strict=True):
        for name, tensor in read_tensors(path).items():
            ours, turned = _dalle_name(side, name, tensor)
            tensors[ours] = turned
    config = dict(raw_config) or _dalle_config(tensors, files[0])
    shapes = parameter_shapes(DalleConfig.from_json(config))
    if config.get("force_ln_scale"):
        # A norm whose scale was never learned is left out of some files.
        for name, shape in shapes.items():
            if name.endswith(".scale") and name not in tensors:
                tensors[name] = LazyTensor("F32", shape, _ones(shape))
    return config, tensors


def read_vqgan(files: list[Path], raw_config: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """As `read_dalle`, of the VQGAN."""
    config = dict(raw_config) or dict(VQGAN_CONFIG)
    tensors: Arrays = {}
    for name, tensor in read_tensors(files[0]).items():
        ours, turned = _vqgan_name(name, tensor)
        tensors[ours] = turned
    return {**config, "has_encoder": False}, tensors


def _dalle_name(side: str, name: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    """Our name, and the tensor as we store it; a name that means nothing here stands for itself."""
    found = _LAYER.fullmatch(name)
    prefix, rest = (f"{side}.layers.{found[1]}.", found[2]) if found else (f"{side}.", name)
    module, _, leaf = rest.rpartition(".")
    if module in _NORMS and leaf in ("weight", "bias"):
        return f"{prefix}{_NORMS[module]}.{'scale' if leaf == 'weight' else 'bias'}", tensor
    if module in _LINEARS and leaf == "weight" and len(tensor.shape) == 2:
        return f"{prefix}{_LINEARS[module]}.kernel", _transposed(tensor, (1, 0))
    if module in _EMBEDDINGS and leaf == "weight":
        return f"{prefix}{_EMBEDDINGS[module]}", tensor
    if side == "decoder" and name == "lm_head.weight" and len(tensor.shape) == 2:
        return "lm_head.kernel", _transposed(tensor, (1, 0))
    return f"{side}.{name}", tensor


def _vqgan_name(name: str, tensor: LazyTensor) -> tuple[str, LazyTensor]:
    if name == "embedding.weight":
        return "quantize.embedding.embedding", tensor
    ours = re.sub(r"\bup\.(\d+)", r"up_\1", name)
    ours = re.sub(r"\b(block|attn)\.(\d+)", r"\1_\2", ours)
    module, _, leaf = ours.rpartition(".")
    if leaf == "weight" and len(tensor.shape) == 4:
        return f"{module}.kernel", _transposed(tensor, (2, 3, 1, 0))
    return (f"{module}.scale" if leaf == "weight" else ours), tensor


def _dalle_config(tensors: Arrays, path: Path) -> dict[str, Any]:
    """The shape that the tensors have. Raises ModelError if one that defines it is missing."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != 2:
            raise ModelError(f"{path}: no tensor {name}: expected min-dalle's encoder.pt and decoder.pt")
        return tensors[name].shape

    def num_layers(side: str) -> int:
        numbers = {int(name.split(".")[2]) for name in tensors if name.startswith(f"{side}.layers.")}
        return max(numbers, default=-1) + 1

    width = shape("encoder.embed_tokens")[1]
    if width % HEAD_DIM:
        raise ModelError(
            f"{path}: expected a width in steps of {HEAD_DIM}, got {width}; put a config.json beside it"
        )
    image_vocab = shape("decoder.embed_tokens")[0] - 1
    norms = (
        "self_attention.pre_norm",
        "cross_attention.pre_norm",
        "ffn.pre_norm",
        "ffn.mid_norm",
        "final_norm",
    )
    return {
        "d_model": width,
        "encoder_layers": num_layers("encoder"),
        "decoder_layers": num_layers("decoder"),
        "encoder_attention_heads": width // HEAD_DIM,
        "decoder_attention_heads": width // HEAD_DIM,
        "encoder_ffn_dim": shape("encoder.layers.0.ffn.gate.kernel")[1],
        "decoder_ffn_dim": shape("decoder.layers.0.ffn.gate.kernel")[1],
        "encoder_vocab_size": shape("encoder.embed_tokens")[0],
        "image_vocab_size": image_vocab,
        "decoder_start_token_id": min(NUM_CODES, image_vocab),
        "image_length": shape("decoder.embed_positions")[0],
        "max_text_length": shape("encoder.embed_positions")[0],
        "use_glu": True,
        "use_bias": False,
        "force_ln_scale": any(name.endswith(tuple(f"{one}.scale" for one in norms)) for name in tensors),
        "normalize_text": True,
    }


def _transposed(tensor: LazyTensor, axes: tuple[int, ...]) -> LazyTensor:
    def load() -> NDArray[Any]:
        return np.ascontiguousarray(tensor.load().transpose(axes))

    return LazyTensor(tensor.dtype, tuple(tensor.shape[axis] for axis in axes), load)


def _ones(shape: tuple[int, ...]) -> Callable[[], NDArray[Any]]:
    return lambda: np.ones(shape, np.float32)
