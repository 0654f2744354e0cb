"""The blocks of the diffusion UNets derived from OpenAI's ADM: residual blocks conditioned on the timestep.

Parameter names are those of guided-diffusion's files.
Dimension key: B rows, C F channels, H W pixels, D width of the conditioning.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

NORM_GROUPS = 32
MAX_PERIOD = 10_000
Resampling = Literal["none", "down", "up"]


class ContextLayer(nn.Module):
    """A layer of a `Block` that is given the context beside the pixels."""


class Block(nn.ModuleList):
    """Layers in sequence, each given what it asks for."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__(layers)

    def forward(
        self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B D"], context: Any
    ) -> Float[Tensor, "B F h w"]:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, ContextLayer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class ResBlock(nn.Module):
    """With `has_scale` the embedding scales and shifts the second norm, else it is added before it.

    `resampling` halves (means of 2 x 2) or doubles (nearest) the pixels between the first norm and convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        emb_dim: int,
        *,
        has_scale: bool = False,
        resampling: Resampling = "none",
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_dim, 2 * channels if has_scale else channels)
        )
        # The identity stands where training had a dropout, so that the names stay the published ones.
        self.out_layers = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Identity(), zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        )
        self.skip_connection = (
            nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
        )
        self.has_scale = has_scale
        self.resampling = resampling

    def forward(self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B D"]) -> Float[Tensor, "B F h w"]:
        if self.resampling == "none":
            h = self.in_layers(x)
        else:
            normalize, activate, convolve = self.in_layers
            h, x = convolve(self._resample(activate(normalize(x)))), self._resample(x)
        told = rearrange(self.emb_layers(emb), "b c -> b c 1 1")
        if not self.has_scale:
            return self.skip_connection(x) + self.out_layers(h + told)
        scale, shift = told.chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)

    def _resample(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        if self.resampling == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def timestep_embedding(timesteps: Float[Tensor, " B"], dim: int) -> Float[Tensor, "B {dim}"]:
    """Cosines, then sines, of `dim / 2` wavelengths from 1 to MAX_PERIOD."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def norm(channels: int) -> nn.GroupNorm:
    """Of NORM_GROUPS groups where they divide the channels; `set_norm_groups` gives a network its own."""
    return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=1e-5)


def set_norm_groups(network: nn.Module, norm_groups: int) -> None:
    """For small networks: a group must hold several channels, or the norm forgets how bright each one is."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            if module.num_channels % norm_groups:
                raise ValueError(
                    f"{module.num_channels} channels do not divide into {norm_groups} norm groups"
                )
            module.num_groups = norm_groups


def zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    """Starts training as a no-op: each residual branch returns zeros at first."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv
