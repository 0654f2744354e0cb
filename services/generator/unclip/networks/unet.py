"""The UNets of the decoder, whose pixels attend to a context, and of super-resolution, conditioned on an image.

Both are ADM's, with down- and up-sampling inside residual blocks; parameter names are those of the original files,
but that queries, keys and values of all heads stand one after another.
Dimension key: B rows, I O channels in and out, C channels inside, H W pixels, N tokens of context, E its width,
D width of the conditioning.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from services.pytorch.adm import (
    NORM_GROUPS,
    Block,
    ContextLayer,
    ResBlock,
    norm,
    set_norm_groups,
    timestep_embedding,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: Karlo's decoder."""

    image_size: int = 64
    in_channels: int = 3
    out_channels: int = 6
    channels: tuple[int, ...] = (320, 640, 960, 1280)  # of each level
    num_res_blocks: int = 3
    attention_levels: tuple[int, ...] = (1, 2, 3)
    has_middle_attention: bool | None = None  # None: if a level has attention
    head_dim: int = 64
    context_dim: int = 1536
    has_scale: bool = True  # whether the timestep scales and shifts, or is added
    emb_dim: int = 0  # 0: four times the channels of the first level
    norm_groups: int = NORM_GROUPS

    @property
    def time_embed_dim(self) -> int:
        return self.emb_dim or 4 * self.channels[0]

    @property
    def attends_in_middle(self) -> bool:
        return bool(self.attention_levels) if self.has_middle_attention is None else self.has_middle_attention


class Context(NamedTuple):
    states: Float[Tensor, "B N E"]
    mask: Bool[Tensor, "B N"]


class UNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width, emb_dim = config.channels[0], config.time_embed_dim
        self.time_embed = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))

        def res(in_channels: int, level: int) -> list[nn.Module]:
            channels = config.channels[level]
            layers: list[nn.Module] = [ResBlock(in_channels, channels, emb_dim, has_scale=config.has_scale)]
            if level in config.attention_levels:
                layers.append(ContextAttention(channels, config.head_dim, config.context_dim))
            return layers

        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        skip_channels, channels, last = [width], width, len(config.channels) - 1
        for level in range(last + 1):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Block(res(channels, level)))
                channels = config.channels[level]
                skip_channels.append(channels)
            if level < last:
                down = ResBlock(channels, channels, emb_dim, has_scale=config.has_scale, resampling="down")
                self.input_blocks.append(Block([down]))
                skip_channels.append(channels)

        middle: list[nn.Module] = [
            ResBlock(channels, channels, emb_dim, has_scale=config.has_scale) for _ in range(2)
        ]
        if config.attends_in_middle:
            middle.insert(1, ContextAttention(channels, config.head_dim, config.context_dim))
        self.middle_block = Block(middle)

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(config.num_res_blocks + 1):
                layers = res(channels + skip_channels.pop(), level)
                channels = config.channels[level]
                if level > 0 and i == config.num_res_blocks:
                    layers.append(
                        ResBlock(channels, channels, emb_dim, has_scale=config.has_scale, resampling="up")
                    )
                self.output_blocks.append(Block(layers))
        self.out = nn.Sequential(
            norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )
        set_norm_groups(self, config.norm_groups)

    def forward(
        self,
        x: Float[Tensor, "B I H W"],
        timesteps: Float[Tensor, " B"],
        emb: Float[Tensor, "B D"] | None = None,
        context: Context | None = None,
    ) -> Float[Tensor, "B O H W"]:
        """`emb` is added to the embedding of the timesteps 0..999."""
        told = self.time_embed(timestep_embedding(timesteps, self.config.channels[0]).to(x.dtype))
        if emb is not None:
            told = told + emb
        skips = []
        for block in self.input_blocks:
            x = block(x, told, context)
            skips.append(x)
        x = self.middle_block(x, told, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), told, context)
        return self.out(x)


class ContextAttention(ContextLayer):
    """Pixels attend to the context and to one another in one softmax."""

    def __init__(self, channels: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels do not divide into heads of {head_dim}")
        self.head_dim = head_dim
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.encoder_kv = nn.Linear(context_dim, 2 * channels)
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Float[Tensor, "B C H W"], context: Context) -> Float[Tensor, "B C H W"]:
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        q, k, v = rearrange(self.qkv(pixels), "b n (three h k) -> three b h n k", three=3, k=self.head_dim)
        # The context is taken as it is: the norm is of the pixels alone.
        context_k, context_v = rearrange(
            self.encoder_kv(context.states), "b n (two h k) -> two b h n k", two=2, k=self.head_dim
        )
        mask = repeat(F.pad(context.mask, (0, q.shape[2]), value=True), "b n -> b 1 1 n")
        attended = F.scaled_dot_product_attention(
            q, torch.cat([context_k, k], dim=2), torch.cat([context_v, v], dim=2), attn_mask=mask
        )
        out = self.proj_out(rearrange(attended, "b h n k -> b n (h k)"))
        return x + rearrange(out, "b (h w) c -> b c h w", h=x.shape[2])
