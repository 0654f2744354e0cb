"""Painted scenes as PyTorch tensors, crops of them, and how near one picture is to another.

Pictures are NCHW in [-1, 1] for the networks, uint8 (H, W, 3) for people.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from training.world.drawing import Painter
from training.world.scenes import WORLDS, Scene, World, sample_scene

Picture = UInt8[np.ndarray, "H W 3"]
# Whatever a world calls training data: some narrow, some wide, so that a part outlives the narrow world.
NARROW_SHARE = 0.3


def sample_either(rng: random.Random, *, held_out: bool | None = False) -> Scene:
    """A scene of the narrow world or of the wide one."""
    return sample_scene(rng, either_world(rng), held_out=held_out)


def either_world(rng: random.Random) -> World:
    return WORLDS["narrow" if rng.random() < NARROW_SHARE else "wide"]


def to_tensor(pictures: Sequence[Picture]) -> Float[Tensor, "B 3 H W"]:
    """To [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def to_pictures(tensor: Float[Tensor, "B 3 H W"]) -> list[Picture]:
    """From [-1, 1]; what overshoots is clamped."""
    scaled = ((tensor.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).numpy())


def crops_on_objects(
    painter: Painter, scenes: Sequence[Scene], rng: random.Random, *, crop_px: int, stride: int
) -> tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B 1 h w"], list[tuple[int, int]]]:
    """One crop a scene, three quarters of them centred on an object; the objects' mask in it, and its corner (y, x).

    Corners lie on multiples of `stride`, so that a network of that stride meets its own grid.
    """
    pictures, masks, corners = [], [], []
    for scene in scenes:
        picture, mask = painter.paint(scene), painter.object_mask(scene)
        limit = (painter.size - crop_px) // stride
        points = np.argwhere(mask)
        if len(points) and rng.random() < 0.75:
            centre = points[rng.randrange(len(points))]
            top, left = (min(max(int(c) - crop_px // 2, 0) // stride, limit) * stride for c in centre)
        else:
            top, left = rng.randint(0, limit) * stride, rng.randint(0, limit) * stride
        pictures.append(picture[top : top + crop_px, left : left + crop_px])
        masks.append(mask[top : top + crop_px, left : left + crop_px])
        corners.append((top, left))
    return to_tensor(pictures), torch.from_numpy(np.stack(masks)).float()[:, None], corners


def psnr(found: Sequence[Picture], truth: Sequence[Picture]) -> float:
    """Mean over the pictures of each one's peak signal-to-noise ratio, in dB."""
    return float(np.mean([_psnr_of_errors(_squared(a, b)) for a, b in zip(found, truth, strict=True)]))


def object_psnr(found: Sequence[Picture], truth: Sequence[Picture], masks: Sequence[np.ndarray]) -> float:
    """PSNR over all the pixels of all the objects, in dB."""
    errors = [_squared(a, b)[mask] for a, b, mask in zip(found, truth, masks, strict=True)]
    return _psnr_of_errors(np.concatenate(errors))


def contact_sheet(rows: Sequence[Sequence[Picture]], *, gap_px: int = 2) -> Image.Image:
    """Rows of pictures of one size on a white ground."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap_px), len(rows) * (height + gap_px)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (x * (width + gap_px), y * (height + gap_px)))
    return sheet


def _squared(a: Picture, b: Picture) -> np.ndarray:
    return (a.astype(np.float32) - b.astype(np.float32)) ** 2


def _psnr_of_errors(errors: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(float(errors.mean()), 1e-6)))


# A pixel stands out if a channel differs so much from its row's median; flat is where fewer do than this share.
STANDS_OUT, LEAST_SHARE = 20, 0.025


def is_flat(picture: Picture) -> bool:
    """Whether nothing is to be seen but bands from side to side: a plain square, or a ground and a sky without a thing.

    The smallest object of a scene covers 4 % of a picture, its sun 3.7 %.
    """
    pixels = picture.astype(np.float32)
    stands_out = np.abs(pixels - np.median(pixels, axis=1, keepdims=True)).max(-1) > STANDS_OUT
    return float(stands_out.mean()) < LEAST_SHARE
