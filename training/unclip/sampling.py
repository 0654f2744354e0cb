"""Draws with networks in training as the service does, all rows at one timestep."""

import torch
from jaxtyping import Float
from torch import Tensor

from services.generator.unclip.networks.prior import Prior
from services.generator.unclip.schedule import advance, step_weights
from training.unclip.networks import DECODER, PRIOR, Decoder, Text


@torch.no_grad()
def draw(
    decoder: Decoder,
    embeddings: Tensor,
    text: Text,
    blank: Text,
    count: int,
    *,
    guidance_scale: float,
    num_steps: int = 15,
) -> Tensor:
    """Pictures in [-1, 1] of the first `count` rows; the noise is the same in every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, decoder.unet.config.image_size, decoder.unet.config.image_size)
    device = embeddings.device
    x = torch.randn(shape, generator=generator).to(device)
    told = torch.ones(count, dtype=torch.bool, device=device)
    text, blank = (Text(t.states[:count], t.embedding[:count], t.mask[:count]) for t in (text, blank))
    for weights in step_weights(num_steps):
        timesteps = torch.full((count,), float(weights.timestep), device=device)
        output = decoder(x, timesteps, embeddings[:count], told, text)
        if guidance_scale != 1:
            uncond = decoder(x, timesteps, embeddings[:count], ~told, blank)
            output = uncond + guidance_scale * (output - uncond)
        noise = torch.randn(shape, generator=generator).to(device)
        x, _ = advance(x, output, noise, [weights] * count, DECODER.diffusion)
    return x


@torch.no_grad()
def predict_embeddings(
    prior: Prior, text: Text, blank: Text, *, guidance_scale: float, num_steps: int = 25
) -> Float[Tensor, "B K"]:
    """Of all rows; the noise is the same in every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(text.embedding), prior.config.embed_dim)
    device = text.embedding.device
    x = torch.randn(shape, generator=generator).to(device)
    for weights in step_weights(num_steps):
        timesteps = torch.full((len(x),), float(weights.timestep), device=device)
        output = prior(x, timesteps, text.embedding, text.states, text.mask)
        if guidance_scale != 1:
            uncond = prior(x, timesteps, blank.embedding, blank.states, blank.mask)
            output = uncond + guidance_scale * (output - uncond)
        noise = torch.randn(shape, generator=generator).to(device)
        x, _ = advance(x, output, noise, [weights] * len(x), PRIOR.diffusion)
    return prior.unscale(x)
