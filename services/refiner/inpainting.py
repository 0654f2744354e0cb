"""Repainting a part of an image: masks latents and pixels, and restores the kept pixels.

Dimension key: S side of the model's pictures, h w latent pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from services.images.codec import Picture
from services.images.masks import Mask

# Of a latent's side in pixels: how far the new picture reaches beyond the mask, and again until it has faded out.
FEATHER = 1 / 4


@dataclass(frozen=True)
class Inpainting:
    """A picture of the model's size, and what of it is kept."""

    original: Picture
    # The share of the new picture in each pixel: 1 where it is repainted, 0 where it is kept, between along the edge.
    weights: Float[np.ndarray, "S S"]
    # Latents that no repainted pixel lies in.
    is_kept: Bool[Tensor, "1 h w"]

    def paste(self, picture: Picture) -> Picture:
        """The new picture inside, the original around it; a smaller picture is a preview."""
        original, weights = self.original, self.weights
        if picture.shape != original.shape:
            size = picture.shape[1], picture.shape[0]
            original = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BOX))
            weights = np.asarray(Image.fromarray(weights).resize(size, Image.Resampling.BOX))
        blend = original + weights[..., None] * (picture.astype(np.float32) - original)
        return np.rint(blend).astype(np.uint8)


def plan_inpainting(original: Picture, mask: Mask, downsampling: int, device: torch.device) -> Inpainting:
    """`original` has the model's size already, `mask` any; `downsampling` is the side of a latent in pixels.

    A pixel, and a latent, is repainted if any part of it is: of what shall go nothing stays at the edge. GLID-3-xl repaints
    a latent from half of it on, which is the same wherever a mask keeps to whole latents.
    """
    repainted = _resize(mask, original.shape[0])
    touched = reduce(repainted, "(h p) (w q) -> h w", "max", p=downsampling, q=downsampling)
    is_kept = torch.from_numpy(rearrange(~touched, "h w -> 1 h w")).to(device)
    return Inpainting(original, _feather(repainted, max(1, round(FEATHER * downsampling))), is_kept)


def _resize(mask: Mask, side: int) -> Bool[np.ndarray, "S S"]:
    # As numbers with a fraction: one pixel of a large mask would be rounded away in 8 bits.
    shares = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(shares) > 0


def _feather(repainted: Bool[np.ndarray, "S S"], radius: int) -> Float[np.ndarray, "S S"]:
    """Grown by `radius` pixels and blurred by as much: 1 in all of the mask, 0 from twice the radius on."""
    window, padding = 2 * radius + 1, radius
    grown = F.max_pool2d(torch.from_numpy(repainted).float()[None], window, 1, padding)
    return F.avg_pool2d(grown, window, 1, padding, count_include_pad=False)[0].numpy()
