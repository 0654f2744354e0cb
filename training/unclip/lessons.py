"""What the decoder and the prior learn from: the pool of scenes, as tiny-unclip's exported CLIP sees it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.loop import option_parser, options_from
from training.unclip.networks import Reader
from training.unclip.scene_pool import POOL, ScenePool, cached_pool, make_pool, pool_scenes
from training.world.drawing import Painter
from training.world.sprites import SpriteSource, fluent_sprites

# With a mask, the backward pass of PyTorch's fused attention takes twice the time on a CPU.
PLAIN_ATTENTION = partial(sdpa_kernel, SDPBackend.MATH)


@dataclass(frozen=True)
class Lessons:
    reader: Reader
    painter: Painter
    pool: ScenePool
    measured: ScenePool  # held-out


def read_lessons(arguments: argparse.Namespace, sprites: SpriteSource, *, num_measured: int) -> Lessons:
    """Also seeds PyTorch, for the weights that a recipe begins with."""
    torch.manual_seed(0)
    reader, painter = Reader(device=options_from(arguments).device), Painter(sprites)
    return Lessons(
        reader,
        painter,
        cached_pool(POOL, arguments.num_scenes, reader.clip, painter),
        make_pool(pool_scenes(num_measured, 1, held_out=True), reader.clip, painter),
    )


def run_on_lessons(
    run: Callable[[argparse.Namespace, SpriteSource], object], description: str | None, **defaults: object
) -> None:
    """The command line of such a recipe."""
    parser = option_parser(description, **defaults)
    parser.add_argument("--num-scenes", type=int, default=24000, help="training scenes, painted once")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())
