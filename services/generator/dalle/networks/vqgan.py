"""The VQGAN: image tokens to pixels, and pixels to image tokens. Functions of parameters.

Parameters, as nested dicts and as dotted safetensors names, are the published ones with dots: conv kernels are HWIO,
norms are groups of 32 with `scale` and `bias`:
  encoder. conv_in, down_{level}.{block_{j}, attn_{j}, downsample.conv}, mid.{block_1, attn_1, block_2}, norm_out, conv_out
  decoder. conv_in, mid, up_{level}.{block_{j}, attn_{j}, upsample.conv}, norm_out, conv_out     (level 0 is full resolution)
  block: norm1, conv1, norm2, conv2, nin_shortcut (if the width changes);  attn: norm, q, k, v, proj_out
  quant_conv, post_quant_conv (1 x 1), quantize.embedding.embedding (codes, embed_dim): the codebook
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, UInt8

from services.errors import ModelError
from services.generator.dalle.networks import winograd

# B images, H x W pixels, h x w tokens, C channels, E code width.
Params = dict[str, Any]

NUM_GROUPS = 32
GROUP_NORM_EPS = 1e-6
CONV_LAYOUT = ("NHWC", "HWIO", "NHWC")

_SUPPORTED = {
    "double_z": False,
    "give_pre_end": False,
    "resamp_with_conv": True,
    "in_channels": 3,
    "out_ch": 3,
}


@dataclass(frozen=True)
class VqganConfig:
    """The shape of the network; names are those of the published config.json."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    embed_dim: int
    n_embed: int
    # Not in the published files, whose norms all have 32. A narrow network needs fewer: with one channel a group,
    # the last norm takes away the very brightness of a picture.
    norm_num_groups: int = NUM_GROUPS
    # min-dalle publishes the half that decodes, and nothing else is needed to make pictures.
    has_encoder: bool = True

    @property
    def tokens_per_side(self) -> int:
        return self.resolution // 2 ** (len(self.ch_mult) - 1)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "VqganConfig":
        """Picks what this network needs from a config.json; raises ModelError for a variant it does not have."""
        for name, expected in _SUPPORTED.items():
            if (found := raw.get(name, expected)) != expected:
                raise ModelError(f"config.json: {name}: expected {expected!r}, got {found!r}")
        values: dict[str, Any] = {}
        if type(has_encoder := raw.get("has_encoder", True)) is not bool:
            raise ModelError(f"config.json: has_encoder: expected true or false, got {has_encoder!r}")
        for name in cls.__dataclass_fields__:
            if name == "has_encoder":
                values[name] = has_encoder
                continue
            is_list = name in ("ch_mult", "attn_resolutions")
            found = raw.get(name, NUM_GROUPS if name == "norm_num_groups" else None)
            numbers = found if is_list else [found]
            if not isinstance(numbers, list) or not all(type(n) is int and n > 0 for n in numbers):
                kind = "a list of whole numbers" if is_list else "a whole number"
                raise ModelError(f"config.json: {name}: expected {kind} above 0, got {found!r}")
            values[name] = tuple(numbers) if is_list else found
        config = cls(**values)
        if config.resolution % 2 ** (len(config.ch_mult) - 1) or config.ch % config.norm_num_groups:
            raise ModelError(
                f"config.json: expected a resolution that halves {len(config.ch_mult) - 1} times and ch in steps of "
                f"{config.norm_num_groups}, got resolution {config.resolution} and ch {config.ch}"
            )
        return config


def parameter_shapes(config: VqganConfig) -> dict[str, tuple[int, ...]]:
    """Every dotted name with its shape, as stored in model.safetensors."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, size: int, size_in: int, size_out: int) -> None:
        shapes[f"{name}.kernel"] = (size, size, size_in, size_out)
        shapes[f"{name}.bias"] = (size_out,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.scale"] = shapes[f"{name}.bias"] = (size,)

    def block(name: str, size_in: int, size_out: int) -> None:
        norm(f"{name}.norm1", size_in)
        conv(f"{name}.conv1", 3, size_in, size_out)
        norm(f"{name}.norm2", size_out)
        conv(f"{name}.conv2", 3, size_out, size_out)
        if size_in != size_out:
            conv(f"{name}.nin_shortcut", 1, size_in, size_out)

    def attn(name: str, size: int) -> None:
        norm(f"{name}.norm", size)
        for projection in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{projection}", 1, size, size)

    def level(name: str, index: int, size_in: int, blocks: int) -> int:
        size = config.ch * config.ch_mult[index]
        for j in range(blocks):
            block(f"{name}.block_{j}", size_in if j == 0 else size, size)
            if config.resolution // 2**index in config.attn_resolutions:
                attn(f"{name}.attn_{j}", size)
        return size

    last = len(config.ch_mult) - 1
    width = config.ch
    conv("encoder.conv_in", 3, 3, width)
    for i in range(last + 1):
        width = level(f"encoder.down_{i}", i, width, config.num_res_blocks)
        if i != last:
            conv(f"encoder.down_{i}.downsample.conv", 3, width, width)
    for part in ("encoder", "decoder"):
        block(f"{part}.mid.block_1", width, width)
        attn(f"{part}.mid.attn_1", width)
        block(f"{part}.mid.block_2", width, width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", 3, width, config.z_channels)
    conv("quant_conv", 1, config.z_channels, config.embed_dim)
    shapes["quantize.embedding.embedding"] = (config.n_embed, config.embed_dim)
    conv("post_quant_conv", 1, config.embed_dim, config.z_channels)
    conv("decoder.conv_in", 3, config.z_channels, width)
    for i in reversed(range(last + 1)):
        width = level(f"decoder.up_{i}", i, width, config.num_res_blocks + 1)
        if i != 0:
            conv(f"decoder.up_{i}.upsample.conv", 3, width, width)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", 3, width, 3)
    if not config.has_encoder:
        return {
            name: shape for name, shape in shapes.items() if not name.startswith(("encoder.", "quant_conv."))
        }
    return shapes


def apply_winograd(params: Params, config: VqganConfig) -> Params:
    """Gives the wide convolutions of the blocks `points` in place of `kernel`, which `winograd.convolve` takes: for CPUs."""

    def halved(branch: Any) -> Any:
        if not isinstance(branch, dict):
            return branch
        for name, below in branch.items():
            if name in ("conv1", "conv2") and min(below["kernel"].shape[2:]) >= winograd.FEWEST_CHANNELS:
                branch[name] = {"points": winograd.transform(below["kernel"]), "bias": below["bias"]}
            else:
                halved(below)
        return branch

    return params if config.tokens_per_side % winograd.TILE else halved(params)


def group_norms(params: Params, config: VqganConfig) -> Params:
    """Gives each norm's scale and bias the shape (groups, channels of a group), from which the norm knows its groups."""

    def grouped(branch: Any) -> Any:
        if not isinstance(branch, dict):
            return branch
        if "scale" in branch:
            return {leaf: value.reshape(config.norm_num_groups, -1) for leaf, value in branch.items()}
        return {name: grouped(below) for name, below in branch.items()}

    return grouped(params)


def halve(params: Params) -> Params:
    """Kernels in float16, for a device that convolves faster so; sums, norms and attention stay float32.

    Not bfloat16, whatever the transformer computes in: its 8 bits are less than a picture's levels need.
    """

    def halved(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf.astype(jnp.float16) if path[-1] == jax.tree_util.DictKey("kernel") else leaf

    half: Params = jax.tree_util.tree_map_with_path(halved, params)
    return half


def decode(params: Params, codes: Float[Array, "B h w E"]) -> Float[Array, "B H W 3"]:
    """Code vectors to raw pixels: about 0 to 1, not clipped."""
    decoder = params["decoder"]
    x = _mid(decoder["mid"], _conv(decoder["conv_in"], _conv(params["post_quant_conv"], codes)))
    for i in reversed(range(_num_levels(decoder, "up"))):
        x = _level(decoder[f"up_{i}"], x)
        if i != 0:
            x = _upsampled_conv(decoder[f"up_{i}"]["upsample"]["conv"], x)
    return _conv(decoder["conv_out"], jax.nn.silu(_norm(decoder["norm_out"], x)))


def encode(params: Params, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
    """Pixels from 0 to 1 to vectors that `quantize` finds the nearest codes of."""
    encoder = params["encoder"]
    x = _conv(encoder["conv_in"], pixels)
    levels = _num_levels(encoder, "down")
    for i in range(levels):
        x = _level(encoder[f"down_{i}"], x)
        if i != levels - 1:
            # The reference pads on the right and at the bottom only.
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
            x = _conv(encoder[f"down_{i}"]["downsample"]["conv"], x, stride=2, padding="VALID")
    x = _mid(encoder["mid"], x)
    x = _conv(encoder["conv_out"], jax.nn.silu(_norm(encoder["norm_out"], x)))
    return _conv(params["quant_conv"], x)


def quantize(params: Params, vectors: Float[Array, "B h w E"]) -> Int[Array, "B tokens"]:
    """The index of the nearest code for each vector, row by row."""
    codebook = params["quantize"]["embedding"]["embedding"]
    squares = jnp.square(codebook).sum(-1)
    # |v - c|^2 without |v|^2, which is the same for all codes.
    distances = squares - 2 * jnp.einsum("bhwe,ce->bhwc", vectors, codebook)
    return distances.argmin(-1).reshape(len(vectors), -1)


def look_up(params: Params, image_tokens: Int[Array, "B tokens"]) -> Float[Array, "B h w E"]:
    """The code vectors of square pictures' tokens."""
    side = round(image_tokens.shape[1] ** 0.5)
    codes = params["quantize"]["embedding"]["embedding"][image_tokens]
    return codes.reshape(len(image_tokens), side, side, -1)


def to_uint8(pixels: Float[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
    """Clips to [0, 1] and truncates, as the reference does."""
    return (jnp.clip(pixels, 0, 1) * 255).astype(jnp.uint8)


def _num_levels(part: Params, prefix: str) -> int:
    return sum(name.startswith(f"{prefix}_") for name in part)


def _level(level: Params, x: Float[Array, "B h w _"]) -> Float[Array, "B h w _"]:
    for j in range(_num_levels(level, "block")):
        x = _block(level[f"block_{j}"], x)
        if f"attn_{j}" in level:
            x = _attn(level[f"attn_{j}"], x)
    return x


def _mid(mid: Params, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    return _block(mid["block_2"], _attn(mid["attn_1"], _block(mid["block_1"], x)))


def _block(block: Params, x: Float[Array, "B h w _"]) -> Float[Array, "B h w _"]:
    hidden = _conv(block["conv1"], jax.nn.silu(_norm(block["norm1"], x)))
    hidden = _conv(block["conv2"], jax.nn.silu(_norm(block["norm2"], hidden)))
    return hidden + (_conv(block["nin_shortcut"], x) if "nin_shortcut" in block else x)


def _attn(attn: Params, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    normed = _norm(attn["norm"], x)
    q, k, v = (_conv(attn[name], normed).reshape(x.shape[0], -1, x.shape[-1]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) * x.shape[-1] ** -0.5, axis=-1)
    return x + _conv(attn["proj_out"], jnp.einsum("bqk,bkc->bqc", weights, v).reshape(x.shape))


def _conv(
    conv: Params, x: Float[Array, "B h w _"], *, stride: int = 1, padding: str = "SAME"
) -> Float[Array, "B _ _ _"]:
    if "points" in conv:
        return winograd.convolve(conv["points"], x) + conv["bias"]
    x = x.astype(conv["kernel"].dtype)
    x = lax.conv_general_dilated(x, conv["kernel"], (stride, stride), padding, dimension_numbers=CONV_LAYOUT)
    return x.astype(jnp.float32) + conv["bias"]


def _upsampled_conv(conv: Params, x: Float[Array, "B h w _"]) -> Float[Array, "B H W _"]:
    """Twice the size by repeating pixels, then a 3 x 3 convolution: four of 2 x 2 on what is not repeated yet.

    A pixel of the upper row sees the row above once and its own twice, one of the lower row its own twice and the row
    below once, and so with columns: the kernel's rows that meet the same pixels are added up, 4/9 of the products stay.
    """

    def halves(kernel: Float[Array, "..."], axis: int) -> list[Float[Array, "..."]]:
        first, middle, last = jnp.split(kernel, 3, axis)
        return [
            jnp.concatenate([first, middle + last], axis),
            jnp.concatenate([first + middle, last], axis),
        ]

    x = x.astype(conv["kernel"].dtype)
    rows = [
        [
            lax.conv_general_dilated(x, kernel, (1, 1), (pad_h, pad_w), dimension_numbers=CONV_LAYOUT)
            for kernel, pad_w in zip(halves(part, 1), ((1, 0), (0, 1)), strict=True)
        ]
        for part, pad_h in zip(halves(conv["kernel"], 0), ((1, 0), (0, 1)), strict=True)
    ]
    upsampled = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2).astype(jnp.float32)
    batch, height, width, channels = rows[0][0].shape
    return upsampled.reshape(batch, 2 * height, 2 * width, channels) + conv["bias"]


def _norm(norm: Params, x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
    batch, channels = x.shape[0], x.shape[-1]
    # Plain vectors are the published norms'; see group_norms.
    groups = norm["scale"].shape[0] if norm["scale"].ndim == 2 else NUM_GROUPS

    def mean_of_group(x: Float[Array, "B h w C"]) -> Float[Array, "B 1 1 C"]:
        # Pixels first: then all channels are added at once, and not the few of a group.
        means = x.mean((1, 2)).reshape(batch, groups, -1).mean(-1)
        return means.repeat(channels // groups, axis=-1)[:, None, None]

    centred = x - mean_of_group(x)
    scale = norm["scale"].reshape(-1) * lax.rsqrt(mean_of_group(jnp.square(centred)) + GROUP_NORM_EPS)
    return centred * scale + norm["bias"].reshape(-1)
