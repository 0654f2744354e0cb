"""The shapes of tiny-unclip, its CLIP as it sees prompts, and noise as the steps have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from services.generator.unclip.model import DecoderPart, PriorPart, SuperResPart
from services.generator.unclip.networks.prior import Prior, PriorConfig
from services.generator.unclip.networks.text_projection import TextProjection, TextProjectionConfig
from services.generator.unclip.networks.unet import Context, UNet, UNetConfig
from services.generator.unclip.schedule import NUM_TRAIN_TIMESTEPS, DiffusionConfig, alphas_cumprod
from services.pytorch.clip import Clip
from services.pytorch.clip_tokenizer import Tokenizer
from training.loop import device_of
from training.unclip.export import FOLDER, read_clip

EMBED_DIM = 128
LARGEST_ROW_WEIGHT = 8.0
# All predict the picture or the embedding, not its noise: networks this small get there sooner.
PRIOR = PriorPart(
    PriorConfig(embed_dim=EMBED_DIM, context_length=32, num_layers=4, num_heads=6, head_dim=32),
    DiffusionConfig(num_steps=25, guidance_scale=3.0, predicts="sample", clip_range=5.0),
)
DECODER = DecoderPart(
    UNetConfig(
        image_size=32,
        in_channels=3,
        out_channels=3,
        channels=(32, 64, 160),
        num_res_blocks=1,
        attention_levels=(2,),
        head_dim=32,
        context_dim=128,
        emb_dim=256,
        norm_groups=8,
    ),
    DiffusionConfig(num_steps=25, guidance_scale=1.5, predicts="sample", clip_range=1.0),
)
TEXT_PROJECTION = TextProjectionConfig(
    embed_dim=EMBED_DIM,
    text_width=128,
    context_dim=DECODER.network.context_dim,
    time_embed_dim=DECODER.network.time_embed_dim,
    num_extra_tokens=4,
)
SUPER_RES = SuperResPart(
    UNetConfig(
        image_size=128,
        in_channels=6,
        out_channels=3,
        channels=(16, 32, 64),
        num_res_blocks=1,
        attention_levels=(),
        has_scale=False,
        norm_groups=8,
    ),
    DiffusionConfig(num_steps=7, guidance_scale=1.0, predicts="sample", clip_range=1.0),
)


@dataclass(frozen=True)
class Text:
    states: Float[Tensor, "B T E"]
    embedding: Float[Tensor, "B K"]
    mask: Bool[Tensor, "B T"]


class Reader:
    """The exported CLIP, frozen: what it makes of prompts and pictures."""

    def __init__(self, folder: Path = FOLDER, device: str = "cpu") -> None:
        clip, self.tokenizer = read_clip(folder)
        self.clip: Clip = clip.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Text:
        tokens = torch.from_numpy(self.tokenizer.encode(prompts)).to(device_of(self.clip))
        encoded = self.clip.encode_states(tokens)
        return Text(encoded.states, encoded.embedding, text_mask(tokens, self.tokenizer))


def text_mask(tokens: Tensor, tokenizer: Tokenizer) -> Bool[Tensor, "B T"]:
    """True up to and including the end token."""
    ends = (tokens == tokenizer.end_token).int().argmax(dim=1)
    return torch.arange(tokens.shape[1], device=tokens.device) <= ends[:, None]


class Decoder(nn.Module):
    """The decoder's UNet and its conditioning: trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet(DECODER.network)
        self.text_projection = TextProjection(TEXT_PROJECTION)
        # Of the embeddings of pictures: how far each of their numbers varies. Not exported.
        self.register_buffer("deviation", torch.ones(EMBED_DIM))

    def begin(self, embeddings: Float[Tensor, "N K"]) -> None:
        """Starts training as if the embeddings had a mean of 0 and a deviation of 1."""
        mean, deviation = embeddings.mean(0), embeddings.std(0)
        self.deviation.copy_(deviation)
        projection = self.text_projection
        with torch.no_grad():
            projection.learned_classifier_free_guidance_embeddings.copy_(mean)
            for linear in (
                projection.clip_image_embeddings_project_to_time_embeddings,
                projection.clip_extra_context_tokens_proj,
            ):
                linear.weight /= deviation
                linear.bias -= linear.weight @ mean

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
    prior = Prior(PRIOR.network)
    prior.clip_mean.copy_(embeddings.mean(0, keepdim=True))
    prior.clip_std.copy_(embeddings.std(0, keepdim=True))
    return prior


def noisy(x0: Float[Tensor, "B ..."], timesteps: Tensor) -> Float[Tensor, "B ..."]:
    """x0 with as much noise as the timesteps say, from torch's generator."""
    abar = _abar(timesteps, x0).view(-1, *[1] * (x0.ndim - 1))
    return abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn_like(x0)


def draw_timesteps(count: int) -> Tensor:
    return torch.randint(NUM_TRAIN_TIMESTEPS, (count,))


def weighted_error(
    guess: Float[Tensor, "B C H W"],
    truth: Float[Tensor, "B C H W"],
    timesteps: Tensor,
    mask: Float[Tensor, "B 1 H W"],
    weight: float,
) -> Tensor:
    """The squared error, in which what an object covers counts `weight` times more.

    Rows with little noise count more, as if their velocity was predicted, but at most LARGEST_ROW_WEIGHT times.
    """
    weights = 1 + weight * mask
    each = ((guess - truth) ** 2 * weights).mean((1, 2, 3)) / weights.mean((1, 2, 3))
    abar = _abar(timesteps, truth)
    return (each * (1 / (1 - abar)).clamp(max=LARGEST_ROW_WEIGHT)).mean()


def _abar(timesteps: Tensor, like: Tensor) -> Float[Tensor, " B"]:
    return torch.from_numpy(alphas_cumprod())[timesteps.cpu()].to(like.device)
