"""DALL·E Mini's shape and its parameters: which variants there are, what each tensor is called, how the networks want them.

Parameters, as nested dicts and as dotted safetensors names (a kernel is (in, out): `x @ kernel`):
  encoder|decoder. embed_tokens (vocab, D), embed_positions (length, D), embed_norm, final_norm, layers.{i}.…; lm_head.kernel
  layers.{i}. self_attention | cross_attention (decoder). pre_norm, q, k, v, out, post_norm;  ffn. pre_norm, gate, up, mid_norm, down
  A norm has `bias`, and `scale` if it is embed_norm or post_norm or config.force_ln_scale; q..out, gate, up, down have
  `kernel`, and `bias` if config.use_bias. `gate` is the gelu branch of a GLU; without config.use_glu there is none, and `up` is gelu'd.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.errors import ModelError

Params = dict[str, Any]

# What the published checkpoints are; the paper's and the training code's other variants were never published.
_SUPPORTED = {
    "activation_function": "gelu",
    "ln_type": "layernorm",
    "ln_positions": "normformer",
    "use_absolute_position_embeddings": True,
    "use_final_ln_encoder": True,
    "use_final_ln_decoder": True,
    "tie_word_embeddings": False,
    "use_alibi": False,
    "use_cosine_attention": False,
    "use_deepnet_scaling": False,
    "use_head_scale": False,
    "use_swin_position_embeddings": False,
    "sinkhorn_iters": 1,
}


@dataclass(frozen=True)
class DalleConfig:
    """The shape of the network; names are those of the published config.json."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    encoder_vocab_size: int
    image_vocab_size: int
    image_length: int
    max_text_length: int
    decoder_start_token_id: int
    use_bias: bool = False
    use_glu: bool = False
    force_ln_scale: bool = False
    scale_embedding: bool = False
    normalize_text: bool = False

    @property
    def num_codes(self) -> int:
        """Image tokens that are codes of the VQGAN; the start token and padding come after them."""
        return self.decoder_start_token_id

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "DalleConfig":
        """Picks what this network needs from a config.json; raises ModelError for a variant it does not have."""
        for name, expected in _SUPPORTED.items():
            if (found := raw.get(name, expected)) != expected:
                raise ModelError(
                    f"config.json: {name}: expected {expected!r}, got {found!r}: not a published variant"
                )
        values: dict[str, Any] = {}
        for name, field in cls.__dataclass_fields__.items():
            kind = bool if field.type in (bool, "bool") else int
            default = raw.get("image_vocab_size") if name == "decoder_start_token_id" else field.default
            found = raw.get(name, default)
            if type(found) is not kind or (kind is int and found < 0):
                raise ModelError(
                    f"config.json: {name}: expected {'true or false' if kind is bool else 'a whole number'}, "
                    f"got {raw.get(name, 'nothing')!r}"
                )
            values[name] = found
        config = cls(**values)
        for heads in (config.encoder_attention_heads, config.decoder_attention_heads):
            if heads == 0 or config.d_model % heads:
                raise ModelError(f"config.json: d_model {config.d_model} cannot be split into {heads} heads")
        if not 0 < config.decoder_start_token_id <= config.image_vocab_size:
            raise ModelError(
                f"config.json: decoder_start_token_id: expected 1 to image_vocab_size {config.image_vocab_size}, "
                f"got {config.decoder_start_token_id}"
            )
        return config


def parameter_shapes(config: DalleConfig) -> dict[str, tuple[int, ...]]:
    """Every dotted name with its shape, as stored in model.safetensors."""
    width = config.d_model
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, size: int, *, scale: bool) -> None:
        shapes[f"{name}.bias"] = (size,)
        if scale or config.force_ln_scale:
            shapes[f"{name}.scale"] = (size,)

    def dense(name: str, size_in: int, size_out: int) -> None:
        shapes[f"{name}.kernel"] = (size_in, size_out)
        if config.use_bias:
            shapes[f"{name}.bias"] = (size_out,)

    def stack(
        part: str, vocab: int, length: int, layers: int, ffn_dim: int, attentions: Sequence[str]
    ) -> None:
        shapes[f"{part}.embed_tokens"] = (vocab, width)
        shapes[f"{part}.embed_positions"] = (length, width)
        norm(f"{part}.embed_norm", width, scale=True)
        norm(f"{part}.final_norm", width, scale=False)
        for layer in (f"{part}.layers.{i}" for i in range(layers)):
            for attention in attentions:
                norm(f"{layer}.{attention}.pre_norm", width, scale=False)
                norm(f"{layer}.{attention}.post_norm", width, scale=True)
                for projection in ("q", "k", "v", "out"):
                    dense(f"{layer}.{attention}.{projection}", width, width)
            norm(f"{layer}.ffn.pre_norm", width, scale=False)
            norm(f"{layer}.ffn.mid_norm", ffn_dim, scale=False)
            for branch in ("gate", "up") if config.use_glu else ("up",):
                dense(f"{layer}.ffn.{branch}", width, ffn_dim)
            dense(f"{layer}.ffn.down", ffn_dim, width)

    stack(
        "encoder",
        config.encoder_vocab_size,
        config.max_text_length,
        config.encoder_layers,
        config.encoder_ffn_dim,
        ("self_attention",),
    )
    # One row more than image_vocab_size: the token that starts every image.
    stack(
        "decoder",
        config.image_vocab_size + 1,
        config.image_length,
        config.decoder_layers,
        config.decoder_ffn_dim,
        ("self_attention", "cross_attention"),
    )
    shapes["lm_head.kernel"] = (width, config.image_vocab_size + 1)
    return shapes


def prepare(params: Params) -> Params:
    """Parameters as the networks want them; `params` are as `parameter_shapes` names them.

    Joins q, k and v of every self-attention, and gate and up of every GLU: fewer and larger matrix products. What the
    decoder multiplies with at each token gets `weight` (out, in) in place of `kernel` (in, out): see `_dense`.
    Works in place, on numpy arrays.
    """

    def joined(layer: Params, names: Sequence[str]) -> Params:
        parts = [layer.pop(name) for name in names]
        return {leaf: np.concatenate([part[leaf] for part in parts], axis=-1) for leaf in parts[0]}

    def transpose(dense: Params) -> None:
        dense["weight"] = np.ascontiguousarray(dense.pop("kernel").T)

    for layer in params["encoder"]["layers"] + params["decoder"]["layers"]:
        layer["self_attention"]["qkv"] = joined(layer["self_attention"], ("q", "k", "v"))
        if "cross_attention" in layer:
            layer["cross_attention"]["kv"] = joined(layer["cross_attention"], ("k", "v"))
        if "gate" in layer["ffn"]:
            layer["ffn"]["gate_up"] = joined(layer["ffn"], ("gate", "up"))
    for layer in params["decoder"]["layers"]:
        for part in layer.values():
            for name, dense in part.items():
                # The keys and values of the text are computed once a prompt.
                if "kernel" in dense and name != "kv":
                    transpose(dense)
    transpose(params["lm_head"])
    return params
