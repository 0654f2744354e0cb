"""CLIP: one embedding for a prompt and for a picture, whose cosine measures how well they fit.

The text tower also conditions some UNets. Parameter names are those of OpenAI's files.
Dimension key: B prompts or pictures, T tokens, N positions, E width, K embedding,
H W pixels.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True)
class ClipConfig:
    """Defaults: ViT-L/14."""

    embed_dim: int = 768
    vocab_size: int = 49408
    context_length: int = 77
    transformer_width: int = 768
    transformer_layers: int = 12
    transformer_heads: int = 12
    image_size: int = 224
    vision_patch_size: int = 14
    vision_width: int = 1024
    vision_layers: int = 24  # 0: no image tower; it cannot rank then
    vision_heads: int = 16
    # Width inside the MLPs; 0: four times the tower's.
    transformer_mlp_width: int = 0
    vision_mlp_width: int = 0
    activation: Activation = "quick_gelu"  # OpenAI's; others train with the exact GELU
    compares_counts: bool = (
        False  # whether ranking for "a cat" compares with "two cat": a small CLIP prefers two
    )


class EncodedText(NamedTuple):
    """The states of all tokens after the last norm, and the projected state of the end token, not normalised."""

    states: Float[Tensor, "B T E"]
    embedding: Float[Tensor, "B K"]


class TextTower(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer_width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.transformer = Transformer(
            width,
            config.transformer_layers,
            config.transformer_heads,
            is_causal=True,
            mlp_width=config.transformer_mlp_width,
            activation=config.activation,
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def encode_text(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B K"]:
        """Not normalised. The end-of-text token must have the highest id: it is where the text is read off."""
        return self.encode_states(tokens).embedding

    def encode_states(self, tokens: Int[Tensor, "B T"]) -> EncodedText:
        """As `encode_text`, and what it is read off from."""
        positions = self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.transformer(self.token_embedding(tokens) + positions))
        rows = torch.arange(len(tokens), device=tokens.device)
        return EncodedText(x, x[rows, tokens.argmax(dim=-1)] @ self.text_projection)


class Clip(TextTower):
    """Both towers: parameters of the text tower first, as in OpenAI's files."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07): where training starts
        self.visual = VisionTower(config) if config.vision_layers else None

    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Not normalised. `images` are what `normalize_image` gives."""
        if self.visual is None:
            raise ValueError("this CLIP has no image tower (vision_layers = 0)")
        return self.visual(images)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], tokens: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Normalised embeddings of pictures and prompts, for training."""
        return F.normalize(self.encode_image(images), dim=-1), F.normalize(self.encode_text(tokens), dim=-1)


class VisionTower(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vision_width
        num_patches = (config.image_size // config.vision_patch_size) ** 2
        self.conv1 = nn.Conv2d(
            3, width, config.vision_patch_size, stride=config.vision_patch_size, bias=False
        )
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(num_patches + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            config.vision_layers,
            config.vision_heads,
            is_causal=False,
            mlp_width=config.vision_mlp_width,
            activation=config.activation,
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        patches = rearrange(self.conv1(images), "b e h w -> b (h w) e")
        whole = self.class_embedding.expand(len(patches), 1, -1)
        x = self.ln_pre(torch.cat([whole, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class Transformer(nn.Module):
    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        *,
        is_causal: bool,
        mlp_width: int = 0,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(
                width, num_heads, is_causal=is_causal, mlp_width=mlp_width, activation=activation
            )
            for _ in range(num_layers)
        )

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        for block in self.resblocks:
            x = block(x)
        return x


class ResidualAttentionBlock(nn.Module):
    def __init__(
        self, width: int, num_heads: int, *, is_causal: bool, mlp_width: int, activation: Activation
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, is_causal=is_causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width or 4 * width, activation)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, *, is_causal: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"a width of {width} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        q, k, v = rearrange(
            F.linear(x, self.in_proj_weight, self.in_proj_bias),
            "b n (three h k) -> three b h n k",
            three=3,
            h=self.num_heads,
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out_proj(rearrange(attended, "b h n k -> b n (h k)"))


class MLP(nn.Module):
    def __init__(self, width: int, inner_width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner_width)
        self.c_proj = nn.Linear(inner_width, width)
        self.activation = activation

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        y = self.c_fc(x)
        return self.c_proj(y * torch.sigmoid(1.702 * y) if self.activation == "quick_gelu" else F.gelu(y))


# The mean and standard deviation of the pictures that OpenAI trained on.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize_image(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """From pictures in [0, 1] to what `encode_image` was trained on."""
    mean, std = (rearrange(images.new_tensor(c), "c -> c 1 1") for c in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std
