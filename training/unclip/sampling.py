"""Draws with networks in training as the service does, all rows at one timestep."""

import torch
from torch import Tensor

from services.generator.unclip.schedule import DiffusionConfig, advance, step_weights
from training.unclip.networks import Decoder, Text

DECODER_DIFFUSION = DiffusionConfig(num_steps=25, guidance_scale=2.5, predicts="sample", clip_range=1.0)


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
    x = torch.randn(shape, generator=generator)
    told = torch.ones(count, dtype=torch.bool)
    text, blank = (Text(t.states[:count], t.embedding[:count], t.mask[:count]) for t in (text, blank))
    for weights in step_weights(num_steps):
        timesteps = torch.full((count,), float(weights.timestep))
        output = decoder(x, timesteps, embeddings[:count], told, text)
        if guidance_scale != 1:
            uncond = decoder(x, timesteps, embeddings[:count], ~told, blank)
            output = uncond + guidance_scale * (output - uncond)
        noise = torch.randn(shape, generator=generator)
        x, _ = advance(x, output, noise, [weights] * count, DECODER_DIFFUSION)
    return x
