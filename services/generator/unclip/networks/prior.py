"""The prior: a transformer that denoises the CLIP embedding of an image, conditioned on the text.

It predicts the embedding itself, scaled to a mean of 0 and a deviation of 1. Parameter names are those of the
published hub folder.
Dimension key: B rows, T text tokens, E width of the text states, K CLIP width, N tokens in all, C width inside.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from services.pytorch.adm import timestep_embedding

# After the text: its embedding, the timestep, the noisy embedding, and the query that the answer is read off from.
NUM_EXTRA_TOKENS = 4


@dataclass(frozen=True)
class PriorConfig:
    """Defaults: Karlo's."""

    embed_dim: int = 768
    context_length: int = 77
    num_layers: int = 20
    num_heads: int = 32
    head_dim: int = 64

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


class Prior(nn.Module):
    clip_mean: Tensor
    clip_std: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, embed_dim = config.width, config.embed_dim
        self.time_embedding = TimeEmbedding(width, width)
        self.proj_in = nn.Linear(embed_dim, width)
        self.embedding_proj = nn.Linear(embed_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(embed_dim, width)
        num_tokens = config.context_length + NUM_EXTRA_TOKENS
        self.positional_embedding = nn.Parameter(torch.randn(1, num_tokens, width) * 0.02)
        self.prd_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.transformer_blocks = nn.ModuleList(
            PriorBlock(width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, embed_dim)
        # Of the embeddings of pictures: the prior knows them with this taken away.
        self.register_buffer("clip_mean", torch.zeros(1, embed_dim))
        self.register_buffer("clip_std", torch.ones(1, embed_dim))

    def forward(
        self,
        x: Float[Tensor, "B K"],
        timesteps: Float[Tensor, " B"],
        text_embedding: Float[Tensor, "B K"],
        text_states: Float[Tensor, "B T E"],
        text_mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B K"]:
        """Predicts the scaled embedding without noise; `text_mask` is true up to and including the end token."""
        waves = timestep_embedding(timesteps, self.config.width).to(x.dtype)
        tokens = [
            self.encoder_hidden_states_proj(text_states),
            self.embedding_proj(text_embedding)[:, None],
            self.time_embedding(waves)[:, None],
            self.proj_in(x)[:, None],
            self.prd_embedding.expand(len(x), -1, -1),
        ]
        y = torch.cat(tokens, dim=1) + self.positional_embedding
        mask = self._attention_mask(text_mask)
        for block in self.transformer_blocks:
            y = block(y, mask)
        return self.proj_to_clip_embeddings(self.norm_out(y[:, -1]))

    def scale(self, embedding: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """What the prior denoises, of a picture's embedding."""
        return (embedding - self.clip_mean) / self.clip_std

    def unscale(self, x: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return x * self.clip_std + self.clip_mean

    @staticmethod
    def _attention_mask(text_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B 1 N N"]:
        """Each token sees those before it and itself, but no padding of the text."""
        is_there = F.pad(text_mask, (0, NUM_EXTRA_TOKENS), value=True)
        num_tokens = is_there.shape[1]
        causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=text_mask.device).tril()
        return (causal & is_there[:, None])[:, None]


class PriorBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, num_heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Float[Tensor, "B N C"], mask: Bool[Tensor, "B 1 N N"]) -> Float[Tensor, "B N C"]:
        x = x + self.attn1(self.norm1(x), mask)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "B N C"], mask: Bool[Tensor, "B 1 N N"]) -> Float[Tensor, "B N C"]:
        q, k, v = (
            rearrange(project(x), "b n (h k) -> b h n k", h=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(attended, "b h n k -> b n (h k)"))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity stands where training had a dropout, so that the names stay the published ones.
        self.net = nn.Sequential(Gelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        return self.net(x)


class Gelu(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N M"]:
        return F.gelu(self.proj(x))


class TimeEmbedding(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, waves: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        return self.linear_2(F.silu(self.linear_1(waves)))
