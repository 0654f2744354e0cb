"""DALL·E Mini: a BART that reads a prompt and writes image tokens. Functions of parameters.

Parameters are named as in `dalle_parameters`, and joined and turned by its `prepare`. Kernels, keys and values may be
float16 or bfloat16: products are added up in float32, and norms, softmax, the residual stream and logits are float32.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from services.generator.dalle.networks.dalle_parameters import DalleConfig, Params

# B rows, T text tokens, S image positions, D model width, N heads, K head width, V image vocabulary.

LAYER_NORM_EPS = 1e-5
TEXT_PAD_ID = 1  # BART's; the image vocabulary has a padding token of its own


class CrossAttentionKV(NamedTuple):
    """The prompt as one decoder layer's cross-attention sees it; computed once per prompt."""

    k: Float[Array, "B N T K"]
    v: Float[Array, "B N T K"]


class EncodedPrompt(NamedTuple):
    """An encoded prompt: the memory of each decoder layer, and which text positions are real."""

    memories: list[CrossAttentionKV]
    text_mask: Bool[Array, "B T"]


class Cache(NamedTuple):
    """Keys and values of the image tokens so far, one array per decoder layer: the static KV cache."""

    k: list[Float[Array, "B N S K"]]
    v: list[Float[Array, "B N S K"]]


def encode(
    params: Params, config: DalleConfig, text_tokens: Int[Array, "B T"], text_mask: Bool[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The prompt's hidden states; padding positions hold numbers too, which the mask keeps from being read."""
    encoder = params["encoder"]
    x = _embed(encoder, config, text_tokens, jnp.arange(text_tokens.shape[1]))
    for layer in encoder["layers"]:
        attention = layer["self_attention"]
        q, k, v = _qkv(attention, _norm(attention["pre_norm"], x), config.encoder_attention_heads)
        attended = attend(q, k, v, text_mask[:, None, :])
        x = _add_attended(attention, x, attended)
        x = x + _ffn(layer["ffn"], x)
    return _norm(encoder["final_norm"], x)


def project_cross_attention(
    params: Params, config: DalleConfig, hidden: Float[Array, "B T D"], text_mask: Bool[Array, "B T"]
) -> EncodedPrompt:
    """Projects the encoder's hidden states to the keys and values of each decoder layer's cross-attention."""
    memories = []
    for layer in params["decoder"]["layers"]:
        k, v = jnp.split(_dense(layer["cross_attention"]["kv"], hidden), 2, axis=-1)
        dtype = layer["cross_attention"]["kv"]["kernel"].dtype
        heads = config.decoder_attention_heads
        memories.append(CrossAttentionKV(*(_split_heads(x, heads).astype(dtype) for x in (k, v))))
    return EncodedPrompt(memories, text_mask)


def truncate_prompt(prompt: EncodedPrompt, length: int) -> EncodedPrompt:
    """The prompt without what stands behind its first `length` tokens: for one whose rest is padding."""
    memories = [
        CrossAttentionKV(memory.k[:, :, :length], memory.v[:, :, :length]) for memory in prompt.memories
    ]
    return EncodedPrompt(memories, prompt.text_mask[:, :length])


def decode(
    params: Params, config: DalleConfig, image_tokens: Int[Array, "B S"], prompt: EncodedPrompt
) -> Float[Array, "B S V"]:
    """Logits after each of `image_tokens` (the start token first), without a cache: to check the cached step."""
    length = image_tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    decoder = params["decoder"]
    x = _embed(decoder, config, image_tokens, jnp.arange(length))
    for layer, memory in zip(decoder["layers"], prompt.memories, strict=True):
        attention = layer["self_attention"]
        q, k, v = _qkv(attention, _norm(attention["pre_norm"], x), config.decoder_attention_heads)
        x = _add_attended(attention, x, attend(q, k, v, causal))
        x = _cross_attend(layer["cross_attention"], config, x, [(memory, prompt.text_mask)])
        x = x + _ffn(layer["ffn"], x)
    return _logits(params, x)


def compute_dtype(params: Params) -> jnp.dtype[Any]:
    """What keys and values are kept in, and the decoder's products computed in."""
    dtype: jnp.dtype[Any] = params["lm_head"]["weight"].dtype
    return dtype


def empty_cache(config: DalleConfig, rows: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """A cache for `rows` pictures of up to `length` image tokens."""
    heads = config.decoder_attention_heads
    shape = (rows, heads, length, config.d_model // heads)
    layers = range(config.decoder_layers)
    return Cache([jnp.zeros(shape, dtype) for _ in layers], [jnp.zeros(shape, dtype) for _ in layers])


def decode_step(
    params: Params,
    config: DalleConfig,
    cache: Cache,
    image_tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    prompts: Sequence[EncodedPrompt],
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads one image token a row, each row at its own position, and returns the logits of the next.

    The rows are dealt evenly to `prompts`, in order; a prompt of one row serves all of its share.
    A position must be below the cache's length. The same token at the same position may be read again.
    """
    decoder = params["decoder"]
    length = cache.k[0].shape[2]
    rows = jnp.arange(len(image_tokens))
    seen = jnp.arange(length)[None, None, :] <= positions[:, None, None]
    x = _embed(decoder, config, image_tokens[:, None], positions[:, None])
    keys, values = [], []
    for i, layer in enumerate(decoder["layers"]):
        attention = layer["self_attention"]
        q, k, v = _qkv(attention, _norm(attention["pre_norm"], x), config.decoder_attention_heads)
        keys.append(cache.k[i].at[rows, :, positions].set(k[:, :, 0]))
        values.append(cache.v[i].at[rows, :, positions].set(v[:, :, 0]))
        x = _add_attended(attention, x, attend(q, keys[-1], values[-1], seen))
        x = _cross_attend(
            layer["cross_attention"],
            config,
            x,
            [(prompt.memories[i], prompt.text_mask) for prompt in prompts],
        )
        x = x + _ffn(layer["ffn"], x)
    return _logits(params, x)[:, 0], Cache(keys, values)


def attend(
    q: Float[Array, "B N T K"],
    k: Float[Array, "#B N S K"],
    v: Float[Array, "#B N S K"],
    mask: Bool[Array, "#B #T S"],
) -> Float[Array, "B N T K"]:
    """Scaled dot-product attention; what the mask forbids has weight exactly 0. One row of k and v may serve all of q.

    Heads come before positions: then the products run along memory, three times as fast on a CPU as the other way.
    """
    k, v = (jnp.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in (k, v))
    q = (q * q.shape[-1] ** -0.5).astype(k.dtype)
    scores = jnp.einsum("bntk,bnsk->bnts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnts,bnsk->bntk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _embed(
    part: Params, config: DalleConfig, tokens: Int[Array, "B T"], positions: Int[Array, "*B T"]
) -> Float[Array, "B T D"]:
    scale = config.d_model**0.5 if config.scale_embedding else 1.0
    # In the type that the checkpoint has them in: the reference adds what is stored as float16 in float16.
    x = part["embed_tokens"][tokens] * scale + part["embed_positions"][positions]
    return _norm(part["embed_norm"], x.astype(jnp.float32))


def _qkv(
    attention: Params, x: Float[Array, "B T D"], heads: int
) -> tuple[Float[Array, "B N T K"], Float[Array, "B N T K"], Float[Array, "B N T K"]]:
    q, k, v = (_split_heads(part, heads) for part in jnp.split(_dense(attention["qkv"], x), 3, axis=-1))
    dtype = _kernel(attention["qkv"]).dtype
    return q, k.astype(dtype), v.astype(dtype)


def _add_attended(
    attention: Params, x: Float[Array, "B T D"], attended: Float[Array, "B N T K"]
) -> Float[Array, "B T D"]:
    joined = attended.swapaxes(1, 2).reshape(x.shape)
    return x + _norm(attention["post_norm"], _dense(attention["out"], joined))


def _cross_attend(
    attention: Params,
    config: DalleConfig,
    x: Float[Array, "B S D"],
    shares: Sequence[tuple[CrossAttentionKV, Bool[Array, "_ _"]]],
) -> Float[Array, "B S D"]:
    q = _split_heads(_dense(attention["q"], _norm(attention["pre_norm"], x)), config.decoder_attention_heads)
    attended = [
        attend(share, memory.k, memory.v, text_mask[:, None, :])
        for share, (memory, text_mask) in zip(jnp.split(q, len(shares)), shares, strict=True)
    ]
    return _add_attended(attention, x, jnp.concatenate(attended))


def _ffn(ffn: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    x = _norm(ffn["pre_norm"], x)
    if "gate_up" in ffn:
        gate, up = jnp.split(_dense(ffn["gate_up"], x), 2, axis=-1)
        x = jax.nn.gelu(gate, approximate=False) * up
    else:
        x = jax.nn.gelu(_dense(ffn["up"], x), approximate=False)
    return _dense(ffn["down"], _norm(ffn["mid_norm"], x))


def _logits(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    return _dense(params["lm_head"], _norm(params["decoder"]["final_norm"], x)).astype(jnp.float32)


def _split_heads(x: Float[Array, "B T D"], heads: int) -> Float[Array, "B N T K"]:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(1, 2)


def _kernel(dense: Params) -> Float[Array, "_ _"]:
    kernel: Array = dense["weight"] if "weight" in dense else dense["kernel"]
    return kernel


def _dense(dense: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    dtype = _kernel(dense).dtype
    if dtype != jnp.float32:
        axis = 1 if "weight" in dense else 0
        contraction = (((x.ndim - 1,), (axis,)), ((), ()))
        x = lax.dot_general(x.astype(dtype), _kernel(dense), contraction, preferred_element_type=jnp.float32)
    elif "weight" in dense:
        # Weights times a few columns take half the time of a few rows times a kernel on a CPU. Without the barriers XLA
        # takes out the transpositions, which cost nothing, and with them the gain.
        columns = _barrier(dense["weight"] @ _barrier(x.reshape(-1, x.shape[-1]).T))
        x = columns.T.reshape(*x.shape[:-1], -1)
    else:
        x = x @ dense["kernel"]
    return x + dense["bias"] if "bias" in dense else x


def _norm(norm: Params, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    x = (x - mean) * lax.rsqrt(variance + LAYER_NORM_EPS)
    return (x * norm["scale"] if "scale" in norm else x) + norm["bias"]


def _barrier(x: Float[Array, "_ _"]) -> Float[Array, "_ _"]:
    """As it is: XLA moves nothing across it."""
    return lax.optimization_barrier(x)  # type: ignore[no-untyped-call] # JAX has no annotation there
