"""Reads the configuration of each network off the names and shapes of its tensors."""

from collections.abc import Callable, Mapping
from typing import Any

from services.errors import ModelError
from services.pytorch.clip_conversion import clip_config, num_indexes
from services.refiner.model import NETWORKS, Config
from services.refiner.networks.text_encoder import TextEncoderConfig
from services.weights.formats.safetensors_file import LazyTensor

Tensors = Mapping[str, LazyTensor]


def config(part: str, tensors: Tensors, settings: Mapping[str, Any], where: str) -> Config:
    """The configuration; `settings` give what no shape shows. Raises ModelError when it is no such network."""
    kind = NETWORKS[part][0]
    try:
        inferred = INFER[part](tensors, settings)
    except (KeyError, IndexError, ZeroDivisionError, ValueError, TypeError) as error:
        wanted = error.args[0] if isinstance(error, KeyError) else "its layers"
        raise ModelError(
            f"{where} does not look like a {part}: {wanted} is missing or of another shape (it holds {len(tensors)} "
            f"tensors, first: {', '.join(sorted(tensors)[:5])}); is it another part's file?"
        ) from None
    taken = {
        name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name not in inferred
    }
    return kind(**taken, **inferred)


def _bert(tensors: Tensors, settings: Mapping[str, Any]) -> dict[str, Any]:
    vocab_size, n_embed = tensors["transformer.token_emb.weight"].shape
    layers = "transformer.attn_layers.layers"
    inner = tensors[f"{layers}.0.1.to_q.weight"].shape[0]
    heads = int(settings.get("heads", TextEncoderConfig().heads))
    return {
        "n_embed": n_embed,
        "n_layer": num_indexes(tensors, layers) // 2,
        "vocab_size": vocab_size,
        "max_seq_len": tensors["transformer.pos_emb.emb.weight"].shape[0],
        "heads": heads,
        "dim_head": inner // heads,
        "ff_mult": tensors[f"{layers}.1.1.net.0.0.weight"].shape[0] // n_embed,
    }


def _unet(tensors: Tensors, settings: Mapping[str, Any]) -> dict[str, Any]:
    model_channels = tensors["time_embed.0.weight"].shape[1]
    # One list of residual blocks' channels for each level; a level ends with a down-sampling.
    levels: list[list[int]] = [[]]
    attention_ds = set()
    for i in range(1, num_indexes(tensors, "input_blocks")):
        if f"input_blocks.{i}.0.op.weight" in tensors:
            levels.append([])
            continue
        levels[-1].append(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if f"input_blocks.{i}.1.proj_in.weight" in tensors:
            attention_ds.add(2 ** (len(levels) - 1))
    if any(len(channels) != len(levels[0]) for channels in levels):
        raise ValueError("levels of different lengths")
    clip_proj = tensors.get("clip_proj.weight")
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "model_channels": model_channels,
        "channel_mult": tuple(channels[0] // model_channels for channels in levels),
        "num_res_blocks": len(levels[0]),
        "attention_ds": tuple(sorted(attention_ds)),
        "context_dim": tensors["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "clip_embed_dim": clip_proj.shape[1] if clip_proj is not None else None,
    }


def _autoencoder(tensors: Tensors, settings: Mapping[str, Any]) -> dict[str, Any]:
    ch = tensors["encoder.conv_in.weight"].shape[0]
    num_levels = num_indexes(tensors, "encoder.down")
    channels = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(num_levels)]
    num_res_blocks = num_indexes(tensors, "encoder.down.0.block")
    if num_levels * num_res_blocks > len(tensors):
        raise ValueError("more blocks than tensors")
    return {
        "ch": ch,
        "ch_mult": tuple(n // ch for n in channels),
        "num_res_blocks": num_res_blocks,
        "z_channels": tensors["decoder.conv_in.weight"].shape[1],
        "embed_dim": tensors["post_quant_conv.weight"].shape[1],
    }


INFER: dict[str, Callable[[Tensors, Mapping[str, Any]], dict[str, Any]]] = {
    "bert": _bert,
    "clip": clip_config,
    "unet": _unet,
    "autoencoder": _autoencoder,
}
