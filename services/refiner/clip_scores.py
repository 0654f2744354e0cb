"""CLIP scores: the cosine between the embeddings of images and a prompt, and for a small CLIP a comparison of two."""

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image

from services.errors import ModelError
from services.images.codec import Picture
from services.pytorch.clip import normalize_image
from services.pytorch.device import oom_as_job_error
from services.refiner.model import RefinerModel

BATCH_SIZE = 8
# What a good picture of one thing has above the prompt for two of it, by a CLIP that compares counts.
LEAD_OF_ONE = 0.1
# The article of the one thing of a prompt, after "a photo of" perhaps; lists and numbers ask for several.
_ONE_THING = re.compile(r"(?P<before>(?:.*?\bof )?)(?:an?|one)\b(?P<after>.*)", re.IGNORECASE | re.DOTALL)
_SEVERAL = re.compile(r"\band\b|,|\b(?:two|three|[2-9])\b", re.IGNORECASE)


@torch.inference_mode()
def rank(model: RefinerModel, prompt: str, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[float]:
    """A score in [-1, 1] for each picture, of any size: the cosine of picture and prompt.

    A CLIP that compares counts takes off what a picture's lead over the prompt for two of its thing lacks of
    `LEAD_OF_ONE`. Raises ModelError if CLIP has no image tower here.
    """
    clip = model.clip
    if clip.visual is None:
        raise ModelError(
            "this refiner's clip part has no image tower, so it cannot rank; convert a whole CLIP"
        )
    other = prompt_for_two(prompt) if clip.config.compares_counts else None
    prompts = [prompt] if other is None else [prompt, other]
    tokens = torch.from_numpy(model.clip_tokenizer.encode(prompts)).to(model.device)
    scores: list[float] = []
    with oom_as_job_error():
        text = F.normalize(clip.encode_text(tokens).float(), dim=-1)
        for start in range(0, len(images), BATCH_SIZE):
            batch = [
                crop_for_clip(image, clip.config.image_size) for image in images[start : start + BATCH_SIZE]
            ]
            pixels = rearrange(torch.from_numpy(np.stack(batch)), "b h w c -> b c h w").to(model.device)
            inputs = normalize_image(pixels.float() / 255).to(model.dtype)
            embeddings = F.normalize(clip.encode_image(inputs).float(), dim=-1)
            cosines = embeddings @ text.T
            scored = cosines[:, 0]
            if other is not None:
                missing = (LEAD_OF_ONE - (cosines[:, 0] - cosines[:, 1])).clamp(min=0)
                scored = (scored - missing).clamp(min=-1)
            scores += scored.tolist()
    return scores


def prompt_for_two(prompt: str) -> str | None:
    """The prompt with "two" in place of the article of its one thing; None if it asks for several, or has no article.

    "A photo of a cat" becomes "A photo of two cat": a small CLIP needs no plural.
    """
    match = _ONE_THING.match(prompt)
    if match is None or _SEVERAL.search(prompt):
        return None
    return f"{match['before']}two{match['after']}"


def crop_for_clip(image: Picture, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The middle square resized to `size`, bicubic, as OpenAI's pictures were."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    # The middle first: a picture of 8192 x 1 pixels, resized as a whole, would be a gigabyte.
    box = (left, top, left + side, top + side)
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))
