"""Enlarging pictures tile by tile, many pictures at once: a step is one forward over one tile of each.

What is finished lies in the job's canvas, over a bicubic enlargement of the rest, so a preview is the canvas (canvas.py).
It knows the network and the tiling; the queue, the callers and the protocol are elsewhere.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from services.engine.events import EncodedPicture
from services.errors import ImageTooLarge
from services.images.codec import MAX_PIXELS, DecodedImage, Picture
from services.images.tiles import padded_size
from services.pytorch.device import oom_as_job_error
from services.pytorch.device_program import DeviceProgram, Mode, bucket_sizes
from services.upscaler.canvas import Canvas, View, make_canvas
from services.upscaler.networks.swinir import NUM_FEATURES, SwinIR
from services.upscaler.tiling import (
    DEFAULT_TILE_OVERLAP,
    DEFAULT_TILE_SIZE,
    MAX_TILE_SIZE,
    Tile,
    cut,
    pad,
)

# More gain nothing: a tile alone fills a GPU.
MAX_TILES_TOGETHER = 16
# Signatures bind each letter once: these are pictures of other sizes than the H x W that comes in.
Padded = UInt8[np.ndarray, "H_pad W_pad 3"]
Enlarged = UInt8[np.ndarray, "H_out W_out 3"]


@dataclass(frozen=True)
class UpscaleJob:
    """One picture to enlarge; `tile_size` 0 is the picture in one piece."""

    image: DecodedImage
    tile_size: int = DEFAULT_TILE_SIZE
    tile_overlap: int = DEFAULT_TILE_OVERLAP


@dataclass
class _Progress:
    """An admitted picture: padded, its tiles, how many of them are done, and what it looks like."""

    padded: Padded
    tiles: list[Tile]
    canvas: Canvas
    num_done: int = 0

    def next_tiles(self, count: int) -> list[Tile]:
        return self.tiles[self.num_done : self.num_done + count]

    def cut_out(self, tile: Tile) -> Padded:
        rows, columns = tile.rows, tile.columns
        return self.padded[rows.start : rows.stop, columns.start : columns.stop]

    def paste(self, enlarged: Enlarged, upscale: int) -> None:
        """Takes the kept part of the tile that comes next."""
        (tile,) = self.next_tiles(1)
        rows, columns = tile.rows, tile.columns
        kept = enlarged[
            (rows.keep_start - rows.start) * upscale : (rows.keep_stop - rows.start) * upscale,
            (columns.keep_start - columns.start) * upscale : (columns.keep_stop - columns.start) * upscale,
        ]
        self.canvas.paste(tile, kept)
        self.num_done += 1


class UpscalerStepper:
    """A Stepper of the engine: `num_slots` pictures that advance by a tile a step."""

    def __init__(
        self,
        network: SwinIR,
        *,
        num_slots: int,
        max_tile_size: int = MAX_TILE_SIZE,
        max_pixels: int = MAX_PIXELS,
        tiles_together: int | None = None,
        mode: Mode | None = None,
    ) -> None:
        """Takes a network that `model.place` has made ready.

        `tiles_together` is how many tiles a step computes at most: by default one of each slot on a CPU, and on a GPU as
        many as fit into what memory is free now. A cancelled picture frees its slot after at most so many tiles.
        """
        self.num_slots = num_slots
        self.max_tile_size = max_tile_size
        self.max_pixels = max_pixels
        self._network = network
        self._device = network.rgb_mean.device
        if tiles_together is None:
            tiles_together = 1 if self._device.type == "cpu" else tiles_that_fit(network)
        self._tiles_together = max(1, tiles_together)
        sizes = bucket_sizes(max(self._tiles_together, num_slots))
        self._program = DeviceProgram(network, self._device, sizes=sizes, mode=mode)
        # Captured graphs read these.
        self._windows: list[object] = []
        self._slots: dict[int, _Progress] = {}

    @property
    def upscale(self) -> int:
        return self._network.config.upscale

    def warm_up(self) -> None:
        """Touches the weights; sizes that were not seen before cost nothing more on a CPU, and little on CUDA.

        Where shapes are captured, those of whole tiles are.
        """
        if self._program.mode == "direct":
            self._enlarge([np.zeros((64, 64, 3), np.uint8)])
            return
        side = padded_size(min(DEFAULT_TILE_SIZE, self.max_tile_size), self._network.config.window_size)
        with self._program.capturing():
            for size in self._program.sizes:
                self._windows.append(self._network.windows(size, side, side, self._device))
                self._enlarge([np.zeros((side, side, 3), np.uint8)] * size)

    def check(self, job: UpscaleJob) -> None:
        """Raises InvalidRequest for what `admit` would refuse, before the job waits in a queue."""
        height, width = job.image.rgb.shape[:2]
        if height * width > self.max_pixels:
            raise ImageTooLarge(
                "image",
                f"must have at most {self.max_pixels} pixels to be enlarged, got {width}x{height}; make it smaller",
            )
        self._tiles(job)

    def admit(self, slot: int, job: UpscaleJob) -> int:
        """Pads the picture and cuts it into tiles; as many steps as tiles."""
        self.check(job)
        tiles = self._tiles(job)
        padded = pad(job.image.rgb, window_size=self._network.config.window_size)
        self._slots[slot] = _Progress(padded, tiles, make_canvas(job.image, self.upscale))
        return len(tiles)

    def step(self, slots: Sequence[int]) -> None:
        """One tile of each slot, in one forward for each shape that occurs among them."""
        self.step_many(slots, 1)

    def step_many(self, slots: Sequence[int], limit: int) -> int:
        """Up to `limit` tiles of each slot, and returns how many: as many as a step may compute together."""
        count = max(1, min(limit, self._tiles_together // len(slots)))
        by_shape: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for slot in slots:
            for number, tile in enumerate(self._slots[slot].next_tiles(count)):
                by_shape[tile.shape].append((slot, number))
        enlarged: dict[tuple[int, int], Enlarged] = {}
        with oom_as_job_error("this tile", "use smaller tiles"):
            for group in by_shape.values():
                tiles = [
                    self._slots[slot].cut_out(self._slots[slot].next_tiles(count)[number])
                    for slot, number in group
                ]
                enlarged |= zip(group, self._enlarge(tiles), strict=True)
        for slot, number in sorted(enlarged):
            self._slots[slot].paste(enlarged[slot, number], self.upscale)
        return count

    def preview(self, slot: int) -> View:
        return self._slots[slot].canvas.preview()

    def result(self, slot: int) -> View:
        return self._slots[slot].canvas.result()

    def decode(self, views: Sequence[View]) -> list[Picture | EncodedPicture]:
        """They are pictures already, or know how to write their file."""
        return [view() if callable(view) else view for view in views]

    def release(self, slot: int) -> None:
        """Forgets the slot's picture; one that is free already stays so."""
        self._slots.pop(slot, None)

    def _tiles(self, job: UpscaleJob) -> list[Tile]:
        window = self._network.config.window_size
        height, width = (padded_size(size, window) for size in job.image.rgb.shape[:2])
        return cut(
            height,
            width,
            tile_size=job.tile_size,
            tile_overlap=job.tile_overlap,
            window_size=window,
            max_tile_size=self.max_tile_size,
        )

    @torch.inference_mode()
    def _enlarge(self, tiles: list[Padded]) -> list[Enlarged]:
        padding = self._program.num_rows(len(tiles)) - len(tiles)
        stacked = np.stack([*tiles, *tiles[:1] * padding])
        pictures = torch.from_numpy(stacked).to(self._device).permute(0, 3, 1, 2).float() / 255
        return list(to_uint8(self._program(pictures))[: len(tiles)])


def tiles_that_fit(network: SwinIR, free_bytes: int | None = None) -> int:
    """How many whole tiles half of the free memory has room for: the other stages of the GPU may want the rest.

    Computed from the network's widths: three copies of the float32 stream, what a block makes of it, and four layers of
    the upsampler's pixels.
    """
    device, config = network.rgb_mean.device, network.config
    if free_bytes is None:
        free, _ = torch.cuda.mem_get_info(device)
        free_bytes = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    itemsize = network.conv_first.weight.element_size()
    block = config.embed_dim * (4 + 2 * config.mlp_ratio) * itemsize
    upsampler = 4 * NUM_FEATURES * config.upscale**2 * itemsize
    per_tile = DEFAULT_TILE_SIZE**2 * (3 * 4 * config.embed_dim + block + upsampler)
    return max(1, min(MAX_TILES_TOGETHER, int(free_bytes / 2 / per_tile)))


def to_uint8(pictures: Float[Tensor, "B 3 H W"]) -> np.ndarray:
    """Clamps, rounds and gives uint8 (B, H, W, 3) on the CPU."""
    levels = (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def upscale(
    network: SwinIR,
    image: Picture,
    *,
    tile_size: int = DEFAULT_TILE_SIZE,
    tile_overlap: int = DEFAULT_TILE_OVERLAP,
) -> Enlarged:
    """Enlarges one picture with a network that `device.place` has made ready.

    Raises ImageTooLarge where the result has more than 16 megapixels, which the service writes to a file.
    """
    stepper = UpscalerStepper(network, num_slots=1)
    for _ in range(stepper.admit(0, UpscaleJob(DecodedImage(image), tile_size, tile_overlap))):
        stepper.step([0])
    enlarged = stepper.result(0)
    if callable(enlarged):
        raise ImageTooLarge("image", "is too large to be enlarged in memory; use the upscaler's service")
    return enlarged
