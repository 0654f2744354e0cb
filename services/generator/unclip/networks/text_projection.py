"""Conditioning of the decoder: CLIP embeddings of the image and of the text, and the text's states.

Parameter names are those of the published hub folder.
Dimension key: B rows, T text tokens, E width of the text states, K CLIP width, C context width, D width of the
decoder's time embedding, X extra context tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


@dataclass(frozen=True)
class TextProjectionConfig:
    """Defaults: Karlo's."""

    embed_dim: int = 768
    text_width: int = 768
    context_dim: int = 1536
    time_embed_dim: int = 1280
    num_extra_tokens: int = 4


class Conditioning(NamedTuple):
    """Of each row what is added to the embedding of its timestep, and the context with its padding masked."""

    emb: Float[Tensor, "B D"]
    context: Float[Tensor, "B N C"]
    mask: Bool[Tensor, "B N"]


class TextProjection(nn.Module):
    def __init__(self, config: TextProjectionConfig) -> None:
        super().__init__()
        self.config = config
        # Replaces the image embedding in unconditional rows.
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(config.embed_dim))
        self.embedding_proj = nn.Linear(config.embed_dim, config.time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(
            config.embed_dim, config.time_embed_dim
        )
        self.clip_extra_context_tokens_proj = nn.Linear(
            config.embed_dim, config.num_extra_tokens * config.context_dim
        )
        self.encoder_hidden_states_proj = nn.Linear(config.text_width, config.context_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(config.context_dim)

    def forward(
        self,
        image_embedding: Float[Tensor, "B K"],
        text_embedding: Float[Tensor, "B K"],
        text_states: Float[Tensor, "B T E"],
        text_mask: Bool[Tensor, "B T"],
    ) -> Conditioning:
        emb = self.clip_image_embeddings_project_to_time_embeddings(image_embedding)
        emb = self.embedding_proj(text_embedding) + emb
        # The index of a feature runs slower than that of its token.
        extra = rearrange(
            self.clip_extra_context_tokens_proj(image_embedding),
            "b (c x) -> b x c",
            x=self.config.num_extra_tokens,
        )
        text = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(text_states))
        mask = F.pad(text_mask, (self.config.num_extra_tokens, 0), value=True)
        return Conditioning(emb, torch.cat([extra, text], dim=1), mask)
