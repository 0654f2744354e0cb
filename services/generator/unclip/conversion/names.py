"""Where each tensor of our networks is in the two published layouts: the hub's folders and Karlo's own files.

A tensor of ours is one published tensor, several one after another, or one whose heads are taken apart.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.generator.unclip.networks.prior import PriorConfig
from services.generator.unclip.networks.unet import UNetConfig
from services.weights.formats.safetensors_file import LazyTensor

Tensors = Mapping[str, LazyTensor]
LEAVES = ("weight", "bias")


@dataclass(frozen=True)
class Origin:
    """Published names, joined along their first dimension; `rearrange` is then applied, and gives `shape`."""

    names: tuple[str, ...]
    rearrange: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None


def take(tensors: Tensors, origins: Mapping[str, Origin]) -> tuple[dict[str, LazyTensor], set[str]]:
    """Our tensors, and the published names that they were made of; what is missing is left out."""
    found: dict[str, LazyTensor] = {}
    used: set[str] = set()
    for ours, origin in origins.items():
        if all(name in tensors for name in origin.names):
            found[ours] = _joined([tensors[name] for name in origin.names], origin)
            used.update(origin.names)
    return found, used


def _joined(pieces: list[LazyTensor], origin: Origin) -> LazyTensor:
    shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])

    def load() -> NDArray[Any]:
        whole = pieces[0].load() if len(pieces) == 1 else np.concatenate([piece.load() for piece in pieces])
        return origin.rearrange(whole) if origin.rearrange else whole

    return LazyTensor(pieces[0].dtype, origin.shape(shape) if origin.shape else shape, load)


# The hub's folders.

HUB_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
HUB_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def hub_unet(config: UNetConfig) -> dict[str, Origin]:
    origins: dict[str, Origin] = {}
    for ours, published in HUB_TOP.items():
        origins |= _leaves(ours, published)
    for ours, published, is_attention in _hub_modules(config):
        if is_attention:
            origins |= _leaves(f"{ours}.norm", f"{published}.group_norm")
            origins |= _leaves(f"{ours}.proj_out", f"{published}.to_out.0")
            for leaf in LEAVES:
                origins[f"{ours}.qkv.{leaf}"] = Origin(
                    tuple(f"{published}.to_{letter}.{leaf}" for letter in "qkv")
                )
                origins[f"{ours}.encoder_kv.{leaf}"] = Origin(
                    tuple(f"{published}.add_{letter}_proj.{leaf}" for letter in "kv")
                )
        else:
            for our_layer, layer in HUB_RES.items():
                origins |= _leaves(f"{ours}.{our_layer}", f"{published}.{layer}")
    return origins


def _hub_modules(config: UNetConfig) -> Iterator[tuple[str, str, bool]]:
    """Our name of every residual block and attention, the hub's, and whether it is an attention."""
    last, block = len(config.channels) - 1, 1
    for level in range(last + 1):
        for i in range(config.num_res_blocks):
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}", False
            if level in config.attention_levels:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}", True
            block += 1
        if level < last:
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0", False
            block += 1
    yield "middle_block.0", "mid_block.resnets.0", False
    if config.attends_in_middle:
        yield "middle_block.1", "mid_block.attentions.0", True
    yield f"middle_block.{1 + config.attends_in_middle}", "mid_block.resnets.1", False
    block = 0
    for up, level in enumerate(range(last, -1, -1)):
        attends = level in config.attention_levels
        for i in range(config.num_res_blocks + 1):
            yield f"output_blocks.{block}.0", f"up_blocks.{up}.resnets.{i}", False
            if attends:
                yield f"output_blocks.{block}.1", f"up_blocks.{up}.attentions.{i}", True
            if level and i == config.num_res_blocks:
                yield f"output_blocks.{block}.{1 + attends}", f"up_blocks.{up}.upsamplers.0", False
            block += 1


# Karlo's own files.

KARLO_PRIOR = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "encoder_hidden_states_proj": "text_enc_proj",
    "embedding_proj": "text_emb_proj",
    "proj_in": "clip_img_proj",
    "proj_to_clip_embeddings": "out_proj",
    "norm_out": "final_ln",
}
KARLO_PRIOR_LAYER = {
    "attn1.to_out.0": "attn.c_proj",
    "norm1": "ln_1",
    "norm3": "ln_2",
    "ff.net.0.proj": "mlp.c_fc",
    "ff.net.2": "mlp.c_proj",
}
KARLO_TEXT_PROJECTION = {
    "encoder_hidden_states_proj": "text_seq_proj.0",
    "text_encoder_hidden_states_norm": "text_seq_proj.1",
    "embedding_proj": "text_feat_proj",
    "clip_extra_context_tokens_proj": "clip_tok_proj",
    "clip_image_embeddings_project_to_time_embeddings": "clip_emb",
}


def karlo_prior(config: PriorConfig) -> dict[str, Origin]:
    origins = {
        "positional_embedding": Origin(("positional_embedding",)),
        "prd_embedding": Origin(("prd_emb",)),
    }
    for ours, published in KARLO_PRIOR.items():
        origins |= _leaves(ours, published)
    for i in range(config.num_layers):
        block, theirs = f"transformer_blocks.{i}", f"transformer.resblocks.{i}"
        for ours, published in KARLO_PRIOR_LAYER.items():
            origins |= _leaves(f"{block}.{ours}", f"{theirs}.{published}")
        for place, letter in enumerate("qkv"):
            for leaf in LEAVES:
                origins[f"{block}.attn1.to_{letter}.{leaf}"] = Origin(
                    (f"{theirs}.attn.c_qkv.{leaf}",),
                    _one_of_heads(place, 3, config.head_dim),
                    lambda shape: (shape[0] // 3, *shape[1:]),
                )
    return origins


def karlo_unet(config: UNetConfig, names: list[str]) -> dict[str, Origin]:
    """Our names are theirs, but that the heads of an attention stand together; `names` are those of the network."""
    origins = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        num_parts = {"qkv": 3, "encoder_kv": 2}.get(module.rpartition(".")[2], 0)
        if num_parts:
            origins[name] = Origin((name,), _flat_heads(num_parts, config.head_dim), _without_width)
        elif module.endswith(".proj_out"):
            origins[name] = Origin((name,), _flat, _without_width)
        else:
            origins[name] = Origin((name,))
    return origins


def karlo_text_projection() -> dict[str, Origin]:
    origins = {"learned_classifier_free_guidance_embeddings": Origin(("cf_param",))}
    for ours, published in KARLO_TEXT_PROJECTION.items():
        origins |= _leaves(ours, published)
    return origins


def same(names: list[str]) -> dict[str, Origin]:
    return {name: Origin((name,)) for name in names}


def _leaves(ours: str, published: str) -> dict[str, Origin]:
    return {f"{ours}.{leaf}": Origin((f"{published}.{leaf}",)) for leaf in LEAVES}


def _without_width(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convolutions along the pixels with a width of 1 are matrices; biases stay as they are."""
    return shape[:2]


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(array.shape[:2])


def _flat_heads(num_parts: int, head_dim: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """From query, key and value of one head after another to all queries, all keys, all values."""

    def rearranged(array: NDArray[Any]) -> NDArray[Any]:
        parts = [_one_of_heads(place, num_parts, head_dim)(array) for place in range(num_parts)]
        return _flat(np.concatenate(parts))

    return rearranged


def _one_of_heads(place: int, num_parts: int, head_dim: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def taken(array: NDArray[Any]) -> NDArray[Any]:
        heads = array.reshape(-1, num_parts, head_dim, *array.shape[1:])
        return heads[:, place].reshape(-1, *array.shape[1:])

    return taken
