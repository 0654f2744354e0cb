"""CLIP under Hugging Face's names, renamed and put together to OpenAI's; and its configuration, off the tensors' shapes."""

import re
from collections.abc import Mapping
from itertools import count
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import ModelError
from services.weights.formats.safetensors_file import DTYPES, LazyTensor

TOWERS = {"text_model.": "", "vision_model.": "visual."}
LAYER_NAMES = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OTHER_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # the misspelling is theirs
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED_NAMES = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
LAYER = re.compile(r"(text_model\.|vision_model\.)encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def to_openai(tensors: Mapping[str, LazyTensor], where: str) -> dict[str, LazyTensor]:
    """The same tensors under OpenAI's names; those that have them already are left alone."""
    if not any(name.startswith(tuple(TOWERS)) for name in tensors):
        return dict(tensors)
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name in OTHER_NAMES:
            renamed[OTHER_NAMES[name]] = tensor
        elif name in TRANSPOSED_NAMES:
            renamed[TRANSPOSED_NAMES[name]] = _transposed(tensor)
        elif match := LAYER.fullmatch(name):
            tower, layer, inner, kind = match.groups()
            block = f"{TOWERS[tower]}transformer.resblocks.{layer}"
            if inner in LAYER_NAMES:
                renamed[f"{block}.{LAYER_NAMES[inner]}.{kind}"] = tensor
            elif inner == "self_attn.q_proj":
                renamed[f"{block}.attn.in_proj_{kind}"] = _joined(tensors, name, where)
            elif inner not in ("self_attn.k_proj", "self_attn.v_proj"):
                renamed[name] = tensor  # left over; the caller's check names it
        else:
            renamed[name] = tensor
    return renamed


def _transposed(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.dtype, tensor.shape[::-1], lambda: tensor.load().T)


def _joined(tensors: Mapping[str, LazyTensor], query_name: str, where: str) -> LazyTensor:
    """Query, key and value, which OpenAI's files hold in one."""
    names = [query_name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
    if missing := [name for name in names if name not in tensors]:
        raise ModelError(f"{where}: missing {', '.join(missing)} beside {query_name}")
    pieces = [tensors[name] for name in names]
    shape = (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])

    def load() -> NDArray[Any]:
        # One after another, so that no more than one piece lies in memory twice.
        whole, end = np.empty(shape, DTYPES[pieces[0].dtype]), 0
        for piece in pieces:
            start, end = end, end + piece.shape[0]
            whole[start:end] = piece.load()
        return whole

    return LazyTensor(pieces[0].dtype, shape, load)


def clip_config(tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both towers, of the tensors under OpenAI's names; `settings` give the numbers of heads.

    Raises KeyError, ValueError or ZeroDivisionError for what is no CLIP.
    """
    vocab_size, width = tensors["token_embedding.weight"].shape
    inferred = {
        "embed_dim": tensors["text_projection"].shape[1],
        "vocab_size": vocab_size,
        "context_length": tensors["positional_embedding"].shape[0],
        "transformer_width": width,
        "transformer_layers": num_indexes(tensors, "transformer.resblocks"),
        # OpenAI's heads are 64 wide.
        "transformer_heads": int(settings.get("transformer_heads", max(1, width // 64))),
        "vision_layers": num_indexes(tensors, "visual.transformer.resblocks"),
        **_mlp_width("transformer", tensors, "transformer.resblocks.0", width),
    }
    return inferred | vision_config(tensors, settings) if inferred["vision_layers"] else inferred


def vision_config(tensors: Mapping[str, LazyTensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `clip_config`, of the image tower alone."""
    width, _, _, patch = tensors["visual.conv1.weight"].shape
    return {
        "embed_dim": tensors["visual.proj"].shape[1],
        "vision_width": width,
        "vision_layers": num_indexes(tensors, "visual.transformer.resblocks"),
        "vision_patch_size": patch,
        "vision_heads": int(settings.get("vision_heads", max(1, width // 64))),
        "image_size": patch * isqrt(tensors["visual.positional_embedding"].shape[0] - 1),
        **_mlp_width("vision", tensors, "visual.transformer.resblocks.0", width),
    }


def hub_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What no shape shows, from a config.json of the hub: of a tower alone, or of both."""
    settings: dict[str, Any] = {}
    for tower, key, kind in (("transformer", "text_config", "text"), ("vision", "vision_config", "vision")):
        nested = raw.get(key)
        of_tower = nested if isinstance(nested, dict) else raw if kind in str(raw.get("model_type")) else {}
        if "num_attention_heads" in of_tower:
            settings[f"{tower}_heads"] = of_tower["num_attention_heads"]
        if "hidden_act" in of_tower:
            settings["activation"] = of_tower["hidden_act"]
    return settings


def num_indexes(tensors: Mapping[str, Any], prefix: str) -> int:
    """How many of prefix.0, prefix.1, ... there are."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    indexes = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    return next(i for i in count() if i not in indexes)


def _mlp_width(tower: str, tensors: Mapping[str, LazyTensor], block: str, width: int) -> dict[str, int]:
    found = tensors.get(f"{block}.mlp.c_fc.weight")
    return {f"{tower}_mlp_width": found.shape[0]} if found and found.shape[0] != 4 * width else {}
