"""The shapes of tiny-unclip, the built-in CLIP as it sees prompts, and noise as the steps have it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from services.generator.unclip.networks.prior import Prior, PriorConfig
from services.generator.unclip.networks.text_projection import TextProjection, TextProjectionConfig
from services.generator.unclip.networks.unet import Context, UNet, UNetConfig
from services.generator.unclip.schedule import NUM_TRAIN_TIMESTEPS, alphas_cumprod
from services.pytorch.clip import Clip
from services.pytorch.clip_tokenizer import Tokenizer
from training.refiner.train_clip import load_clip

EMBED_DIM = 128
PRIOR = PriorConfig(embed_dim=EMBED_DIM, context_length=32, num_layers=4, num_heads=6, head_dim=32)
DECODER = UNetConfig(
    image_size=32,
    in_channels=3,
    out_channels=3,
    channels=(32, 64, 96),
    num_res_blocks=1,
    attention_levels=(2,),
    head_dim=32,
    context_dim=96,
    norm_groups=8,
)
TEXT_PROJECTION = TextProjectionConfig(
    embed_dim=EMBED_DIM,
    text_width=128,
    context_dim=DECODER.context_dim,
    time_embed_dim=DECODER.time_embed_dim,
    num_extra_tokens=4,
)
SUPER_RES = UNetConfig(
    image_size=128,
    in_channels=6,
    out_channels=3,
    channels=(16, 32, 64),
    num_res_blocks=1,
    attention_levels=(),
    has_scale=False,
    norm_groups=8,
)


@dataclass(frozen=True)
class Text:
    states: Float[Tensor, "B T E"]
    embedding: Float[Tensor, "B K"]
    mask: Bool[Tensor, "B T"]


class Reader:
    """The exported CLIP, frozen: what it makes of prompts and pictures."""

    def __init__(self) -> None:
        clip, self.tokenizer = load_clip()
        self.clip: Clip = clip.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Text:
        tokens = torch.from_numpy(self.tokenizer.encode(prompts))
        encoded = self.clip.encode_states(tokens)
        return Text(encoded.states, encoded.embedding, text_mask(tokens, self.tokenizer))


def text_mask(tokens: Tensor, tokenizer: Tokenizer) -> Bool[Tensor, "B T"]:
    """True up to and including the end token."""
    ends = (tokens == tokenizer.end_token).int().argmax(dim=1)
    return torch.arange(tokens.shape[1]) <= ends[:, None]


class Decoder(nn.Module):
    """The decoder's UNet and its conditioning: trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(DECODER)
        self.text_projection = TextProjection(TEXT_PROJECTION)

    def forward(
        self, x: Tensor, timesteps: Tensor, embeddings: Tensor, is_told: Tensor, text: Text
    ) -> Float[Tensor, "B 3 H W"]:
        """`is_told`: rows that see the picture's embedding; the others have the learned one in its place."""
        blank = self.text_projection.learned_classifier_free_guidance_embeddings
        seen = torch.where(is_told[:, None], embeddings, blank.expand_as(embeddings))
        told = self.text_projection(seen, text.embedding, text.states, text.mask)
        return self.unet(x, timesteps, told.emb, Context(told.context, told.mask))


def make_prior(embeddings: Tensor) -> Prior:
    """Untrained, with the mean and deviation of these embeddings."""
    prior = Prior(PRIOR)
    prior.clip_mean.copy_(embeddings.mean(0, keepdim=True))
    prior.clip_std.copy_(embeddings.std(0, keepdim=True))
    return prior


def noisy(x0: Float[Tensor, "B ..."], timesteps: Tensor) -> Float[Tensor, "B ..."]:
    """x0 with as much noise as the timesteps say, from torch's generator."""
    abar = torch.from_numpy(alphas_cumprod())[timesteps].view(-1, *[1] * (x0.ndim - 1))
    return abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn_like(x0)


def draw_timesteps(count: int) -> Tensor:
    return torch.randint(NUM_TRAIN_TIMESTEPS, (count,))


def weighted_error(guess: Tensor, truth: Tensor, mask: Tensor, weight: float) -> Tensor:
    """The mean squared error, in which what an object covers counts `weight` times more."""
    weights = 1 + weight * mask
    return (rearrange((guess - truth) ** 2, "b c h w -> b c h w") * weights).sum() / (
        weights.sum() * truth.shape[1]
    )
