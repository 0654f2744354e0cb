"""The KL autoencoder between pictures and latents (latent diffusion's `AutoencoderKL`, KL-f8).

Pictures are NCHW in [-1, 1]. Latents here are the autoencoder's own: the diffusion's are `scale_factor`
times these (`to_diffusion`, `from_diffusion`). Parameter names are those of kl-f8.pt.
Dimension key: B pictures, H W pixels, Z latent channels,
h w latent pixels, C channels inside.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from services.pytorch.adm import Upsample

NORM_GROUPS = 32


@dataclass(frozen=True)
class AutoencoderConfig:
    """Defaults: the published KL-f8."""

    image_size: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    # Divides the spread of the latents' out, so that the diffusion sees about unit variance.
    scale_factor: float = 0.18215
    norm_groups: int = NORM_GROUPS

    @property
    def latent_size(self) -> int:
        return self.image_size // self.downsampling

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class Gaussian:
    """The encoder's answer: a diagonal normal distribution for each latent number."""

    mean: Float[Tensor, "B Z h w"]
    logvar: Float[Tensor, "B Z h w"]

    def sample(self, noise: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        """`noise` is standard normal, of the latents' shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Float[Tensor, " B"]:
        """Divergence from the standard normal, summed over each picture's latent."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).sum(dim=(1, 2, 3))


class Autoencoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        # Small networks: a group must hold several channels, or the norm forgets how bright each one is.
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                if module.num_channels % config.norm_groups:
                    raise ValueError(
                        f"{module.num_channels} channels do not divide into {config.norm_groups} norm groups"
                    )
                module.num_groups = config.norm_groups

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Gaussian:
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B 3 H W"]:
        """Not clamped: the picture's [-1, 1] may be overshot."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(
        self, images: Float[Tensor, "B 3 H W"], noise: Float[Tensor, "B Z h w"] | None = None
    ) -> tuple[Float[Tensor, "B 3 H W"], Gaussian]:
        """Encodes and decodes, for training; without `noise` the mean stands for the sample."""
        posterior = self.encode(images)
        latents = posterior.mean if noise is None else posterior.sample(noise)
        return self.decode(latents), posterior

    def to_diffusion(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        return latents * self.config.scale_factor

    def from_diffusion(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
        return latents / self.config.scale_factor


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.ch
        for level, mult in enumerate(config.ch_mult):
            is_last = level == len(config.ch_mult) - 1
            self.down.append(_DownLevel(channels, config.ch * mult, config.num_res_blocks, not is_last))
            channels = config.ch * mult
        self.mid = _Middle(channels)
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M h w"]:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = _Middle(channels)
        levels = []
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            levels.append(_UpLevel(channels, config.ch * mult, config.num_res_blocks + 1, level > 0))
            channels = config.ch * mult
        # The file numbers the levels from the finest, the computation goes from the coarsest.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B 3 H W"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _DownLevel(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_blocks: int, downsample: bool) -> None:
        super().__init__()
        self.block = _blocks(in_channels, channels, num_blocks)
        self.downsample = Downsample(channels) if downsample else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _UpLevel(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_blocks: int, upsample: bool) -> None:
        super().__init__()
        self.block = _blocks(in_channels, channels, num_blocks)
        self.upsample = Upsample(channels) if upsample else None

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        y = self.norm(x)
        q, k, v = (rearrange(layer(y), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        # Padded on the right and below only, as the published weights were trained.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


def _blocks(in_channels: int, channels: int, num_blocks: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(in_channels if i == 0 else channels, channels) for i in range(num_blocks))
