"""The UNet that predicts the noise in a latent, conditioned on the timestep, the prompt and optionally its CLIP embedding.

Latent diffusion's, as GLID-3-xl has it; parameter names are those of diffusion.pt.
Dimension key: B rows (latents to denoise), Z latent channels, H W latent pixels, T context tokens,
E context width, C channels inside, K CLIP width, N pixels as a sequence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from services.pytorch.adm import (
    NORM_GROUPS,
    Block,
    ContextLayer,
    Downsample,
    ResBlock,
    Upsample,
    norm,
    set_norm_groups,
    timestep_embedding,
    zeroed,
)


@dataclass(frozen=True)
class UNetConfig:
    """Defaults: diffusion.pt of GLID-3-xl."""

    in_channels: int = 4  # more than out_channels: the rest is the latent of a picture to inpaint
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_ds: tuple[int, ...] = (1, 2, 4)  # down-samplings at which the pixels attend to the prompt
    num_heads: int = 8
    context_dim: int = 1280
    clip_embed_dim: int | None = None  # None: not conditioned on the CLIP embedding (no `clip_proj`)
    # The first latent channels that guidance moves. The published pictures were made with 3 of 4.
    guided_channels: int = 3
    norm_groups: int = NORM_GROUPS
    # Default settings of its images.
    num_steps: int = 100
    skip_ratio: float = 0.5
    guidance_scale: float = 5.0

    @property
    def image_channels(self) -> int:
        """Channels of `image_embed`: 0 unless the network inpaints."""
        return self.in_channels - self.out_channels


class UNet(nn.Module):
    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        emb_dim = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.clip_proj = nn.Linear(config.clip_embed_dim, emb_dim) if config.clip_embed_dim else None

        def res(in_channels: int, channels: int, downsampling: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(in_channels, channels, emb_dim)]
            if downsampling in config.attention_ds:
                layers.append(SpatialTransformer(channels, config.num_heads, config.context_dim))
            return layers

        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        channels, downsampling = width, 1
        skip_channels = [width]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Block(res(channels, width * mult, downsampling)))
                channels = width * mult
                skip_channels.append(channels)
            if level < len(config.channel_mult) - 1:
                self.input_blocks.append(Block([Downsample(channels)]))
                skip_channels.append(channels)
                downsampling *= 2

        self.middle_block = Block(
            [
                ResBlock(channels, channels, emb_dim),
                SpatialTransformer(channels, config.num_heads, config.context_dim),
                ResBlock(channels, channels, emb_dim),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers = res(channels + skip_channels.pop(), width * mult, downsampling)
                channels = width * mult
                if level > 0 and i == config.num_res_blocks:
                    layers.append(Upsample(channels))
                    downsampling //= 2
                self.output_blocks.append(Block(layers))
        self.out = nn.Sequential(
            norm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )
        set_norm_groups(self, config.norm_groups)

    def forward(
        self,
        x: Float[Tensor, "B Z H W"],
        timesteps: Float[Tensor, " B"],
        context: Float[Tensor, "B T E"],
        clip_embed: Float[Tensor, "B K"] | None = None,
        image_embed: Float[Tensor, "B I H W"] | None = None,
    ) -> Float[Tensor, "B Z H W"]:
        """Predicts the noise in `x`; `timesteps` are the original 0..999 and may be fractional."""
        if self.config.image_channels:
            if image_embed is None:
                image_embed = x.new_zeros(len(x), self.config.image_channels, *x.shape[2:])
            x = torch.cat([x, image_embed], dim=1)
        emb = self.embed(timesteps, clip_embed)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x)

    def embed(
        self, timesteps: Float[Tensor, " B"], clip_embed: Float[Tensor, "B K"] | None
    ) -> Float[Tensor, "B D"]:
        """The conditioning of every residual block; without `clip_embed` the timestep alone."""
        waves = timestep_embedding(timesteps, self.config.model_channels)
        emb = self.time_embed(waves.to(next(self.time_embed.parameters()).dtype))
        return emb if self.clip_proj is None or clip_embed is None else emb + self.clip_proj(clip_embed)


class SpatialTransformer(ContextLayer):
    """Pixels attend to one another and to the prompt."""

    def __init__(self, channels: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)  # not the 1e-5 of the residual blocks
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, context_dim)])
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(
        self, x: Float[Tensor, "B C H W"], context: Float[Tensor, "B T E"]
    ) -> Float[Tensor, "B C H W"]:
        pixels = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            pixels = block(pixels, context)
        return x + self.proj_out(rearrange(pixels, "b (h w) c -> b c h w", h=x.shape[2]))


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = Attention(channels, channels, num_heads)
        self.attn2 = Attention(channels, context_dim, num_heads)
        self.ff = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "B N C"], context: Float[Tensor, "B T E"]) -> Float[Tensor, "B N C"]:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    def __init__(self, channels: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "B N C"], context: Float[Tensor, "B T E"]) -> Float[Tensor, "B N C"]:
        q, k, v = (
            rearrange(y, "b n (h k) -> b h n k", h=self.num_heads)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n k -> b n (h k)"))


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GatedGelu(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return self.net(x)


class GatedGelu(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N M"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
