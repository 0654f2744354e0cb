"""Draws scenes in several processes: one CPU draws a hundred scenes a second, a GPU learns from thousands.

Each process has a painter of its own; a scene is the same picture whichever process draws it.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from jaxtyping import Bool, UInt8

from training.world.drawing import Painter
from training.world.scenes import Scene
from training.world.sprites import SpriteSource, fluent_sprites

SCENES_EACH = 32
Painted = tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]


class Painters(AbstractContextManager["Painters"]):
    def __init__(
        self, painter: Painter, processes: int = 1, sprites: Callable[[], SpriteSource] = fluent_sprites
    ) -> None:
        """`sprites` are what the other processes draw with; with one process there is no other than this."""
        self.size = painter.size
        self.most_at_once = SCENES_EACH * processes
        self._paint = partial(_paint, painter)
        self._pool: ProcessPoolExecutor | None = None
        if processes > 1:
            # JAX and torch have threads, which a forked process would lack.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(processes, context, _start, (sprites, painter.size))

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def paint(
        self, scenes: Sequence[Scene], masked: Sequence[Scene]
    ) -> tuple[UInt8[np.ndarray, "B H W 3"], Bool[np.ndarray, "B H W"]]:
        """Pictures of `scenes`, and where the objects of `masked` are."""
        if self._pool is None:
            found = [self._paint(*pair) for pair in zip(scenes, masked, strict=True)]
        else:
            found = list(self._pool.map(_paint_here, scenes, masked, chunksize=SCENES_EACH))
        pictures, masks = zip(*found, strict=True)
        return np.stack(pictures), np.stack(masks)


def _paint(painter: Painter, scene: Scene, masked: Scene) -> Painted:
    return painter.paint(scene), painter.object_mask(masked)


# Of a process that was started to draw.
_own: list[Painter] = []


def _start(sprites: Callable[[], SpriteSource], size: int) -> None:
    _own.append(Painter(sprites(), size))


def _paint_here(scene: Scene, masked: Scene) -> Painted:
    return _paint(_own[0], scene, masked)
