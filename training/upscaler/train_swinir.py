"""Trains the built-in upscaler: SwinIR x4 on scenes and on dead leaves, sharp or as the refiner leaves them.

    python -m training.upscaler.train_swinir --steps 4000 --resume --export

Needs: the sprites; the exported autoencoder, if there is one, to degrade pictures with; 1 GB of memory; about
0.2 CPU seconds a step. `python -m training.photographs` fetches the photographs that it also measures on.
Reached: 3.25 dB over Lanczos on held-out scenes, .24 to 1.51 dB over bicubic on photographs, in 330 CPU
seconds (docs/models.md).
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from services.refiner.networks.autoencoder import Autoencoder, AutoencoderConfig
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from training.export import load_exported, model_folder, write_part
from training.images import Picture, contact_sheet, psnr, sample_either, to_pictures, to_tensor
from training.loop import Losses, Measures, option_parser, options_from, rng_of_step, train
from training.photographs import measured_photographs
from training.upscaler.textures import dead_leaves
from training.world.drawing import Painter
from training.world.sprites import SpriteSource, fluent_sprites

UPSCALE = 4
CONFIG = SwinIRConfig(
    upscale=UPSCALE,
    upsampler="pixelshuffledirect",
    embed_dim=32,
    depths=(2, 2, 2),
    num_heads=(4, 4, 4),
)
CROP_PX = 16  # of the small picture
LEAVES_SHARE, DEGRADED_SHARE = 0.35, 0.25  # of the crops; the rest are sharp scenes
# So many crops are looked at for each one that is trained on: the busiest are kept.
CANDIDATES_A_CROP = 3


@dataclass(frozen=True)
class Pair:
    """A picture and what is left of it at a quarter of its side."""

    large: Picture
    small: Picture


@dataclass(frozen=True)
class Corpus:
    sharp: Sequence[Pair]
    degraded: Sequence[Pair]
    leaves: Sequence[Pair]


def shrink(large: Picture) -> Picture:
    height, width = large.shape[:2]
    size = (width // UPSCALE, height // UPSCALE)
    return np.asarray(Image.fromarray(large).resize(size, Image.Resampling.BICUBIC))


def enlarge_with(filter_: Image.Resampling, small: Picture) -> Picture:
    height, width = small.shape[:2]
    return np.asarray(Image.fromarray(small).resize((width * UPSCALE, height * UPSCALE), filter_))


def make_corpus(
    sprites: SpriteSource,
    autoencoder: Autoencoder | None,
    count: int,
    *,
    seed: int,
    held_out: bool,
    sizes: tuple[int, int] = (512, 256),
) -> Corpus:
    """`count` scenes at 512 px and half as many at 256, and `count` dead leaves."""
    rng = random.Random(seed)
    sharp = []
    for size, number in zip(sizes, (count, count // 2), strict=True):
        painter = Painter(sprites, size)
        larges = [painter.paint(sample_either(rng, held_out=held_out)) for _ in range(number)]
        sharp += [Pair(large, shrink(large)) for large in larges]
    degraded = [Pair(pair.large, degrade(pair.small, autoencoder, rng)) for pair in sharp]
    leaves = []
    for _ in range(count):
        large = dead_leaves(rng, sizes[1])
        leaves.append(Pair(large, shrink(large)))
    return Corpus(sharp, degraded, leaves)


def degrade(small: Picture, autoencoder: Autoencoder | None, rng: random.Random) -> Picture:
    """What the stages before leave of a picture: a trip through their latents, or a little blur and noise."""
    if autoencoder is not None and rng.random() < 0.7 and small.shape[0] == autoencoder.config.image_size:
        with torch.no_grad():
            return to_pictures(autoencoder.decode(autoencoder.encode(to_tensor([small])).mean))[0]
    blurred = Image.fromarray(small).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(0, 1.5), small.shape)
    return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


def draw_batch(corpus: Corpus, batch_size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Small and large crops in [0, 1], the busiest of those looked at."""
    candidates: list[tuple[float, int, Picture, Picture]] = []
    for _ in range(batch_size * CANDIDATES_A_CROP):
        kind = rng.random()
        pairs = corpus.leaves if kind < LEAVES_SHARE else corpus.sharp
        pairs = corpus.degraded if LEAVES_SHARE <= kind < LEAVES_SHARE + DEGRADED_SHARE else pairs
        pair = pairs[rng.randrange(len(pairs))]
        y, x = (rng.randint(0, side - CROP_PX) for side in pair.small.shape[:2])
        small = pair.small[y : y + CROP_PX, x : x + CROP_PX]
        large = pair.large[UPSCALE * y : UPSCALE * (y + CROP_PX), UPSCALE * x : UPSCALE * (x + CROP_PX)]
        # Leaves are busy everywhere: they compete as if they were as busy as scenes are.
        busyness = (
            rng.random() * 130
            if pairs is corpus.leaves
            else float(small.astype(np.float32).std((0, 1)).sum())
        )
        candidates.append((busyness, len(candidates), small, large))
    chosen = sorted(candidates, reverse=True)[:batch_size]
    return from_pictures([c[2] for c in chosen]), from_pictures([c[3] for c in chosen])


def from_pictures(pictures: Sequence[Picture]) -> Tensor:
    """To [0, 1], as SwinIR takes them."""
    return to_tensor(pictures) / 2 + 0.5


def start_as_linear_filter(network: SwinIR, corpus: Corpus) -> None:
    """Starts the network as the best 3x3 linear enlarger: features 0 to 2 carry RGB, the body says nothing.

    The weights of the last convolution come from least squares; what is learned is what a linear filter cannot do.
    """
    pairs = [*corpus.sharp[:24], *corpus.leaves[:24]]
    rows, targets = [], []
    for pair in pairs:
        small, large = from_pictures([pair.small]), from_pictures([pair.large])
        mean = network.rgb_mean
        patches = F.unfold((small - mean).permute(1, 0, 2, 3), 3)  # one row of three channels each
        rows.append(patches.transpose(1, 2).reshape(-1, 9))
        pixels = F.pixel_unshuffle((large - mean).permute(1, 0, 2, 3), UPSCALE)[:, :, 1:-1, 1:-1]
        targets.append(pixels.flatten(2).transpose(1, 2).reshape(-1, UPSCALE**2))
    # Normal equations in float64: float32 loses the small differences between neighbours.
    seen, wanted = torch.cat(rows).double(), torch.cat(targets).double()
    solution = torch.linalg.solve(seen.T @ seen, seen.T @ wanted).float()
    first, last = network.conv_first, network.upsample[0]
    after_body = network.conv_after_body
    assert isinstance(last, nn.Conv2d)  # noqa: S101
    assert isinstance(after_body, nn.Conv2d)  # noqa: S101
    with torch.no_grad():
        first.weight[:3] = 0
        first.bias[:3] = 0  # type: ignore[index]
        last.weight.mul_(0.01)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        last.weight[:, :3] = 0
        for channel in range(3):
            first.weight[channel, channel, 1, 1] = 1
            outputs = slice(channel * UPSCALE**2, (channel + 1) * UPSCALE**2)
            last.weight[outputs, channel] = solution.T.reshape(-1, 3, 3)
        nn.init.zeros_(after_body.weight)
        nn.init.zeros_(after_body.bias)  # type: ignore[arg-type]


def losses_of_step(network: SwinIR, corpus: Corpus, batch_size: int, step: int) -> Losses:
    small, large = draw_batch(corpus, batch_size, rng_of_step("swinir", step))
    error = network(small) - large
    return {"loss": (error**2 + 1e-6).sqrt().mean()}


@torch.no_grad()
def enlarge(network: SwinIR, small: Picture) -> Picture:
    return to_pictures(network(from_pictures([small])) * 2 - 1)[0]


def measure(corpus: Corpus, photographs: dict[str, Picture], network: SwinIR) -> Measures:
    """dB gained over Lanczos on scenes, and over bicubic on photographs."""

    def gain(pairs: Sequence[Pair], filter_: Image.Resampling) -> float:
        truth = [pair.large for pair in pairs]
        ours = psnr([enlarge(network, pair.small) for pair in pairs], truth)
        return ours - psnr([enlarge_with(filter_, pair.small) for pair in pairs], truth)

    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    measures = {
        "sharp_over_lanczos_db": gain(corpus.sharp, lanczos),
        "degraded_over_lanczos_db": gain(corpus.degraded, lanczos),
    }
    for name, photograph in photographs.items():
        measures[f"{name}_over_bicubic_db"] = gain([Pair(photograph, shrink(photograph))], bicubic)
    return measures


def draw_sheet(corpus: Corpus, network: SwinIR) -> Image.Image:
    """Lanczos, ours, truth: sharp ones, then degraded ones."""
    pairs = [*corpus.sharp[:3], *corpus.degraded[:3]]
    return contact_sheet(
        [
            [enlarge_with(Image.Resampling.LANCZOS, pair.small) for pair in pairs],
            [enlarge(network, pair.small) for pair in pairs],
            [pair.large for pair in pairs],
        ]
    )


def run(arguments: argparse.Namespace, sprites: SpriteSource) -> SwinIR:
    options = options_from(arguments)
    torch.manual_seed(0)
    autoencoder = None
    if (model_folder("refiner") / "autoencoder" / "config.json").exists():
        autoencoder = load_exported("refiner", "autoencoder", Autoencoder, AutoencoderConfig)
    corpus = make_corpus(sprites, autoencoder, arguments.num_scenes, seed=0, held_out=False)
    measured = make_corpus(sprites, autoencoder, arguments.num_measured, seed=1, held_out=True)
    if options.from_weights:
        network = load_exported("upscaler", "swinir", SwinIR, SwinIRConfig)
    else:
        network = SwinIR(CONFIG)
        start_as_linear_filter(network, corpus)
    average = train(
        "swinir",
        network,
        partial(losses_of_step, network, corpus, options.batch_size),
        options,
        measure=partial(measure, measured, measured_photographs()),
        sheet=partial(draw_sheet, measured),
    )
    if arguments.export:
        write_part("upscaler", "swinir", average, asdict(average.config))
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=4000, batch_size=16, learning_rate=2e-3, weight_decay=0.0, measure_every=500
    )
    parser.add_argument("--num-scenes", type=int, default=240, help="512 px training pictures")
    parser.add_argument("--num-measured", type=int, default=16, help="held-out pictures to measure on")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
