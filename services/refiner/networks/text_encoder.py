"""The text encoder of GLID-3-xl: latent diffusion's "BERT", 32 pre-normalised transformer layers.

It has no attention mask and attends to the padding as it was trained to. Parameter names are those of
bert.pt. Dimension key: B prompts, T tokens, E width, M inner width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TextEncoderConfig:
    """Defaults: bert.pt of GLID-3-xl."""

    n_embed: int = 1280
    n_layer: int = 32
    vocab_size: int = 30522
    max_seq_len: int = 77
    heads: int = 8
    dim_head: int = 64
    ff_mult: int = 4


class TextEncoder(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        return self.transformer(tokens)


class Transformer(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(config.vocab_size, config.n_embed)
        self.pos_emb = PositionEmbedding(config.max_seq_len, config.n_embed)
        self.attn_layers = Layers(config)
        self.norm = nn.LayerNorm(config.n_embed)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        return self.norm(self.attn_layers(self.token_emb(tokens) + self.pos_emb(tokens.shape[1])))


class PositionEmbedding(nn.Module):
    def __init__(self, max_seq_len: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, width)

    def forward(self, num_tokens: int) -> Float[Tensor, "T E"]:
        return self.emb(torch.arange(num_tokens, device=self.emb.weight.device))


class Layers(nn.Module):
    """Attention and feed-forward in turn, each behind a LayerNorm and added to the stream."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        blocks = [kind(config) for _ in range(config.n_layer) for kind in (Attention, FeedForward)]
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(config.n_embed), block) for block in blocks)

    def forward(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Attention(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.dim_head  # 512 beside a width of 1280 in the published encoder
        self.to_q = nn.Linear(config.n_embed, inner, bias=False)
        self.to_k = nn.Linear(config.n_embed, inner, bias=False)
        self.to_v = nn.Linear(config.n_embed, inner, bias=False)
        self.to_out = nn.Linear(inner, config.n_embed)

    def forward(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        q, k, v = (
            rearrange(project(x), "b t (h k) -> b h t k", h=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t k -> b t (h k)"))


class FeedForward(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        inner = config.ff_mult * config.n_embed
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(config.n_embed, inner), nn.GELU()),
            nn.Identity(),
            nn.Linear(inner, config.n_embed),
        )

    def forward(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        return self.net(x)
