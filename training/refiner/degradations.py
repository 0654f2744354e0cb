"""What the generator makes of a picture: what the refiner has to mend.

The exported VQGAN and transformer if there are any; else blur and noise that look much like them.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from training import checkpoint
from training.generator.dalle_torch import Dalle
from training.generator.train_dalle import TOKENIZER, WEIGHTS as TRANSFORMER, load_dalle
from training.generator.train_tokenizer import encode
from training.generator.train_vqgan import WEIGHTS
from training.generator.vqgan_torch import Vqgan
from training.images import Picture, to_pictures, to_tensor
from training.world.captions import caption
from training.world.scenes import Scene

# Pictures NCHW in [-1, 1] of these scenes, and a generator for what is random about it.
Degrade = Callable[[Tensor, Sequence[Scene], random.Random], Tensor]
# The side of the generator's pictures; the refiner enlarges them to its own.
SKETCH_PX = 128
# How many tokens of a picture are resampled, and how freely. More would turn objects that the transformer hardly knows
# into blots, which cannot be mended.
LEAST_RETOLD, MOST_RETOLD = 0.0, 0.4
TEMPERATURE = 0.8


def sketch_degrade(weights: Path = WEIGHTS) -> Degrade:
    """What the refiner is taught on: the generator's mistakes at the generator's size."""
    return at_sketch_size(generator_degrade(weights))


def at_sketch_size(degrade: Degrade) -> Degrade:
    """Degrades pictures of any size as sketches of `SKETCH_PX`, enlarged again as the refiner's service does it."""

    def enlarged(images: Tensor, scenes: Sequence[Scene], rng: random.Random) -> Tensor:
        size = images.shape[-1]
        sketches = degrade(F.interpolate(images, size=SKETCH_PX, mode="area"), scenes, rng)
        return to_tensor([resized(sketch, size) for sketch in to_pictures(sketches)])

    return enlarged


def resized(picture: Picture, size: int) -> Picture:
    """Square, of another size, as the refiner's service makes it."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))


def tokenizer_degrade(weights: Path = WEIGHTS) -> Degrade:
    """Through the VQGAN of the built-in generator, or through `soften` as long as there is none."""
    if not weights.exists():
        return soften
    vqgan = Vqgan()
    checkpoint.load_flax_tensors(vqgan, checkpoint.read_tensors(weights))
    vqgan.eval().requires_grad_(False)

    def tokenise(images: Tensor, _: Sequence[Scene], __: random.Random) -> Tensor:
        tokens = vqgan.tokens(vqgan.encode(images / 2 + 0.5))
        return (vqgan.decode(vqgan.look_up(tokens)) * 2 - 1).clamp(-1, 1)

    return tokenise


def generator_degrade(weights: Path = WEIGHTS, transformer: Path = TRANSFORMER) -> Degrade:
    """As `tokenizer_degrade`, but the transformer resamples some of the tokens: its mistakes, in their places."""
    if not transformer.exists():
        return tokenizer_degrade(weights)
    vqgan, dalle, tokenizer = Vqgan(), load_dalle(transformer), Tokenizer.from_file(str(TOKENIZER))
    checkpoint.load_flax_tensors(vqgan, checkpoint.read_tensors(weights))
    vqgan.eval().requires_grad_(False)
    dalle.eval().requires_grad_(False)

    def retell(images: Tensor, scenes: Sequence[Scene], rng: random.Random) -> Tensor:
        grid = vqgan.tokens(vqgan.encode(images / 2 + 0.5))
        texts = [caption(scene, rng).text for scene in scenes]
        text_tokens = encode(tokenizer, texts, dalle.config.max_text_length)
        retold = retell_tokens(dalle, text_tokens, grid.flatten(1), torch_rng(rng))
        return (vqgan.decode(vqgan.look_up(retold.view_as(grid))) * 2 - 1).clamp(-1, 1)

    return retell


@torch.no_grad()
def retell_tokens(
    dalle: Dalle, text_tokens: Int[Tensor, "B T"], image_tokens: Int[Tensor, "B S"], rng: torch.Generator
) -> Int[Tensor, "B S"]:
    """Each row with a share of its own of what the transformer would have said, each time after what is true."""
    logits = dalle(text_tokens, image_tokens)[..., : dalle.config.image_vocab_size].float()
    drawn = torch.multinomial((logits / TEMPERATURE).softmax(-1).flatten(0, 1), 1, generator=rng)
    share = LEAST_RETOLD + (MOST_RETOLD - LEAST_RETOLD) * torch.rand(len(image_tokens), 1, generator=rng)
    is_retold = torch.rand(image_tokens.shape, generator=rng) < share
    return torch.where(is_retold, drawn.view_as(image_tokens), image_tokens)


def torch_rng(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(63))


def soften(images: Tensor, _: Sequence[Scene], rng: random.Random) -> Tensor:
    """A little blur and noise."""
    small = F.interpolate(images, scale_factor=1 / rng.uniform(1, 2.5), mode="area")
    blurred = F.interpolate(small, size=images.shape[2:], mode="bilinear")
    return (blurred + rng.uniform(0, 0.1) * torch.randn_like(blurred)).clamp(-1, 1)
