"""SwinIR (Liang et al., 2021): a small RGB picture in, one `upscale` times larger out.

Parameter names are those of the published checkpoints. The residual stream is one float32 row per pixel, in raster
order; a block gathers windows of rows, advances them and puts them back, so attention masks, shifting and partition
are index lists computed once per size. It is an ordinary trainable module.
Letters: B pictures, H x W pixels, P pixels of all pictures, C channels, n windows of N pixels, K heads, D channels of a head.
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from services.errors import ModelError
from services.upscaler.networks.window_attention import WindowAttention, Windows, partition

UPSCALES = {"pixelshuffle": (2, 3, 4, 8), "pixelshuffledirect": (2, 3, 4), "nearest+conv": (2, 4)}
RESIDUAL_CONNECTIONS = ("1conv", "3conv")
# DIV2K's mean, which the reference subtracts and which no checkpoint holds.
RGB_MEAN = (0.4488, 0.4371, 0.4040)
NUM_FEATURES = 64  # channels of the upsamplers: fixed in the reference
# On a CPU, a chunk of windows passes through a whole block while it stays in the processor's cache.
CHUNK_BYTES = 2 << 20
# A residual stream with larger values is scaled down to this before a convolution in float16, whose largest is 65504:
# the sums of a convolution have room to grow.
FLOAT16_LARGEST_INPUT = 256.0


@dataclass(frozen=True)
class SwinIRConfig:
    """The reference's constructor arguments, as far as published checkpoints differ in them."""

    upscale: int
    upsampler: str
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 8
    mlp_ratio: float = 2.0
    resi_connection: str = "1conv"

    def __post_init__(self) -> None:
        if self.upsampler not in UPSCALES:
            raise ModelError(f"upsampler: expected one of {', '.join(UPSCALES)}, got '{self.upsampler}'")
        if self.upscale not in UPSCALES[self.upsampler]:
            raise ModelError(
                f"upscale: '{self.upsampler}' enlarges by {UPSCALES[self.upsampler]}, got {self.upscale}"
            )
        if self.resi_connection not in RESIDUAL_CONNECTIONS:
            raise ModelError(
                f"resi_connection: expected one of {', '.join(RESIDUAL_CONNECTIONS)}, got '{self.resi_connection}'"
            )
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ModelError(
                f"expected as many num_heads as depths, got {len(self.num_heads)} and {len(self.depths)}"
            )
        if self.embed_dim < 1 or self.window_size < 2 or self.mlp_ratio <= 0 or min(self.depths) < 1:
            raise ModelError(f"expected positive sizes and a window of at least 2 pixels, got {self}")
        if any(heads < 1 or self.embed_dim % heads for heads in self.num_heads):
            raise ModelError(
                f"embed_dim {self.embed_dim} must be a multiple of each of num_heads {self.num_heads}"
            )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "SwinIRConfig":
        """Takes a config.json, ours or one with all of the reference's arguments; raises ModelError."""
        window_size, img_size = raw.get("window_size", 8), raw.get("img_size", 64)
        fixed = {"in_chans": 3, "img_range": 1.0, "ape": False, "patch_norm": True, "qkv_bias": True}
        for name, value in fixed.items():
            if raw.get(name, value) != value:
                raise ModelError(
                    f"{name}: expected {value}, got {raw[name]}: not a network this upscaler has"
                )
        names = {field.name for field in fields(cls)}
        if unknown := sorted(raw.keys() - names - fixed.keys() - {"img_size"}):
            raise ModelError(
                f"unknown settings of a SwinIR: {', '.join(unknown)}; expected {', '.join(sorted(names))}"
            )
        try:
            smallest = min(img_size) if isinstance(img_size, list | tuple) else img_size
            # The reference builds no shifted window into a network that is trained on one window.
            if smallest <= window_size:
                raise ModelError(
                    f"img_size {img_size} is not larger than window_size {window_size}: a network without shifted "
                    "windows, which no published checkpoint is; expected a larger img_size"
                )
            return cls(
                upscale=operator.index(raw["upscale"]),
                upsampler=str(raw["upsampler"]),
                embed_dim=operator.index(raw["embed_dim"]),
                depths=tuple(map(operator.index, raw["depths"])),
                num_heads=tuple(map(operator.index, raw["num_heads"])),
                window_size=operator.index(window_size),
                mlp_ratio=float(raw.get("mlp_ratio", 2.0)),
                resi_connection=str(raw.get("resi_connection", "1conv")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not the configuration of a SwinIR: {error!r}") from None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


class MLP(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "*any C"]) -> Float[Tensor, "*any C"]:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each normalized before and added to the residual stream."""

    def __init__(self, config: SwinIRConfig, num_heads: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, config.window_size)
        self.norm2 = nn.LayerNorm(dim)
        # The small number undoes the rounding of a ratio that was inferred from shapes; the reference truncates.
        self.mlp = MLP(dim, int(dim * config.mlp_ratio + 1e-6))

    def advance(self, x: Float[Tensor, "n N C"], bias: Float[Tensor, "K N N"]) -> Float[Tensor, "n N C"]:
        # The weights say in which precision to multiply; sums and norms stay in the stream's own.
        dtype = self.mlp.fc1.weight.dtype
        x = x + self.attn(self.norm1(x).to(dtype), bias)
        return x + self.mlp(self.norm2(x).to(dtype))

    def forward(self, stream: Float[Tensor, "P C"], windows: tuple[Windows, ...]) -> Float[Tensor, "P C"]:
        """Advances every window. Without gradients the stream is changed in place, chunk by chunk."""
        bias = self.attn.bias()
        biases = [bias if kind.mask is None else bias + kind.mask for kind in windows]
        if torch.is_grad_enabled():
            advanced = [
                self.advance(stream[kind.rows], bias) for kind, bias in zip(windows, biases, strict=True)
            ]
            back = torch.cat([kind.rows.flatten() for kind in windows]).argsort()
            return torch.cat(advanced).flatten(0, 1)[back]
        bytes_per_window = 4 * bias.shape[-1] * stream.shape[-1]
        for kind, bias in zip(windows, biases, strict=True):
            on_cpu = stream.device.type == "cpu"
            chunk = max(1, CHUNK_BYTES // bytes_per_window) if on_cpu else len(kind.rows)
            for rows in torch.split(kind.rows, chunk):
                x = stream.index_select(0, rows.flatten()).view(*rows.shape, -1)
                stream.index_copy_(0, rows.flatten(), self.advance(x, bias).flatten(0, 1))
        return stream


class ResidualGroup(nn.Module):
    """Blocks in turn, every second one on windows shifted by half a window."""

    def __init__(self, config: SwinIRConfig, depth: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(config, num_heads) for _ in range(depth))

    def forward(
        self, stream: Float[Tensor, "P C"], plain: tuple[Windows, ...], shifted: tuple[Windows, ...]
    ) -> Float[Tensor, "P C"]:
        for i, block in enumerate(self.blocks):
            stream = block(stream, shifted if i % 2 else plain)
        return stream


class RSTB(nn.Module):
    """Residual Swin transformer block: a group of blocks and a convolution, added to what came in."""

    def __init__(self, config: SwinIRConfig, depth: int, num_heads: int) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(config, depth, num_heads)
        self.conv = residual_conv(config)

    def forward(
        self,
        stream: Float[Tensor, "P C"],
        grid: tuple[int, int, int],
        plain: tuple[Windows, ...],
        shifted: tuple[Windows, ...],
    ) -> Float[Tensor, "P C"]:
        # The blocks change their stream in place.
        x = self.residual_group(stream if torch.is_grad_enabled() else stream.clone(), plain, shifted)
        return stream + as_stream(convolve_stream(self.conv, as_picture(x, grid)))


class PatchEmbed(nn.Module):
    """A patch is a pixel here: only the norm is left of it, and its name in the checkpoints."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, stream: Float[Tensor, "P C"]) -> Float[Tensor, "P C"]:
        return self.norm(stream)


class SwinIR(nn.Module):
    def __init__(self, config: SwinIRConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = PatchEmbed(dim)
        self.layers = nn.ModuleList(
            RSTB(config, depth, heads) for depth, heads in zip(config.depths, config.num_heads, strict=True)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = residual_conv(config)
        if config.upsampler == "pixelshuffledirect":
            self.upsample = pixel_shuffle_steps(config.upscale, dim, direct=True)
        else:
            # The slope is 0.01 here and 0.2 everywhere else, as the checkpoints were trained.
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(dim, NUM_FEATURES, 3, padding=1), nn.LeakyReLU(0.01, inplace=True)
            )
            if config.upsampler == "pixelshuffle":
                self.upsample = pixel_shuffle_steps(config.upscale, NUM_FEATURES, direct=False)
            else:
                self.conv_up1 = nn.Conv2d(NUM_FEATURES, NUM_FEATURES, 3, padding=1)
                if config.upscale == 4:
                    self.conv_up2 = nn.Conv2d(NUM_FEATURES, NUM_FEATURES, 3, padding=1)
                self.conv_hr = nn.Conv2d(NUM_FEATURES, NUM_FEATURES, 3, padding=1)
            self.conv_last = nn.Conv2d(NUM_FEATURES, 3, 3, padding=1)
        self.rgb_mean: Tensor
        self.register_buffer("rgb_mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def fold_biases(self) -> None:
        """Expands every table of relative positions once, for serving; call it after the weights are in place."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.folded_bias = None
                    module.folded_bias = module.bias()

    def train(self, mode: bool = True) -> "SwinIR":
        """As of every module; training forgets what was folded."""
        if mode:
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.folded_bias = None
        return super().train(mode)

    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H_out W_out"]:
        """Enlarges RGB in [0, 1]; the result is not clamped.

        Sides that are no multiple of window_size are reflected, without the edge pixel, and cut off again.
        """
        height, width = pictures.shape[-2:]
        x = reflect_to_multiple(pictures, self.config.window_size) - self.rgb_mean
        x = self.conv_first(x.to(self.conv_first.weight.dtype, memory_format=torch.channels_last))
        x = x + self.conv_after_body(self.body(x.float()).to(x.dtype))
        enlarged = self.enlarge(x).float() + self.rgb_mean
        return enlarged[:, :, : height * self.config.upscale, : width * self.config.upscale]

    def body(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        batch, _, height, width = x.shape
        plain, shifted = self.windows(batch, height, width, x.device)
        stream = self.patch_embed(as_stream(x))
        for layer in self.layers:
            stream = layer(stream, (batch, height, width), plain, shifted)
        return as_picture(self.norm(stream), (batch, height, width))

    def windows(
        self, batch: int, height: int, width: int, device: torch.device
    ) -> tuple[tuple[Windows, ...], tuple[Windows, ...]]:
        """The windows of pictures whose sides are multiples of the window's, and those that are shifted by half of it."""
        window = self.config.window_size
        plain, shifted = (
            partition(batch, height, width, window, shift, device) for shift in (0, window // 2)
        )
        return plain, shifted

    def enlarge(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H_out W_out"]:
        if self.config.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        x = self.conv_before_upsample(x)
        if self.config.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        x = F.leaky_relu_(self.conv_up1(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        if self.config.upscale == 4:
            x = F.leaky_relu_(self.conv_up2(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu_(self.conv_hr(x), 0.2))


def residual_conv(config: SwinIRConfig) -> nn.Module:
    dim = config.embed_dim
    if config.resi_connection == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


def convolve_stream(conv: nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """A residual convolution of the float32 stream, in the precision of its weights.

    The stream of a SwinIR leaves the range of float16. There each picture is scaled down before the convolution and up
    behind it. A leaky ReLU scales with its input, so only the biases must follow.
    """
    dtype = memory_dtype(conv)
    if dtype != torch.float16:
        return conv(x.to(dtype))
    scale = (x.abs().amax(dim=(1, 2, 3), keepdim=True) / FLOAT16_LARGEST_INPUT).clamp(min=1)
    x = (x / scale).to(dtype)
    for layer in conv if isinstance(conv, nn.Sequential) else [conv]:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            bias = layer.bias.float()[:, None, None] / scale
            x = F.conv2d(x, layer.weight, padding=layer.padding) + bias.to(dtype)
        else:
            x = layer(x)
    return x.float() * scale


def pixel_shuffle_steps(upscale: int, num_channels: int, *, direct: bool) -> nn.Sequential:
    """One convolution to RGB and a shuffle, or a convolution and a shuffle for x3 or each doubling."""
    if direct:
        return nn.Sequential(nn.Conv2d(num_channels, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))
    factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
    steps = [
        (nn.Conv2d(num_channels, num_channels * factor**2, 3, padding=1), nn.PixelShuffle(factor))
        for factor in factors
    ]
    return nn.Sequential(*(module for step in steps for module in step))


def reflect_to_multiple(
    pictures: Float[Tensor, "B 3 H W"], multiple: int
) -> Float[Tensor, "B 3 H_pad W_pad"]:
    """Pads below and to the right, as often as it takes: the reference fails when a picture is too small for that."""
    for dim in (2, 3):
        size = pictures.shape[dim]
        if size % multiple:
            index = np.pad(np.arange(size), (0, -size % multiple), mode="reflect")
            pictures = pictures.index_select(dim, torch.from_numpy(index).to(pictures.device))
    return pictures


def as_stream(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "P C"]:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_picture(stream: Float[Tensor, "P C"], grid: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
    """Channels last in memory: no copy."""
    return stream.view(*grid, -1).permute(0, 3, 1, 2)


def memory_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
