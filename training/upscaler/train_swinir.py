"""Trains the built-in upscaler: SwinIR x4 on what the refiner leaves of scenes, on sharp scenes and on dead leaves.

    python -m training.upscaler.train_swinir --steps 8000 --resume --export

Needs: the sprites; the exported refiner and generator, which make the pictures that it is to enlarge; 2 GB of memory;
about 0.3 CPU seconds a step. `python -m training.photographs` fetches the photographs that it also measures on.
Reached: training/NOTES.md.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from services.refiner.model import load_model
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from training import checkpoint
from training.export import load_exported, model_folder, write_part
from training.images import Picture, contact_sheet, psnr, sample_either, to_pictures, to_tensor
from training.loop import (
    OUTPUT_FOLDER,
    Losses,
    Measures,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.photographs import measured_photographs
from training.refiner.degradations import generator_degrade
from training.refiner.refined_pictures import RefinedPictures
from training.upscaler.textures import dead_leaves
from training.world.drawing import Painter
from training.world.scenes import Scene
from training.world.sprites import SpriteSource, fluent_sprites

UPSCALE = 4
CONFIG = SwinIRConfig(
    upscale=UPSCALE,
    upsampler="pixelshuffledirect",
    embed_dim=32,
    depths=(4, 4, 4),
    num_heads=(4, 4, 4),
)
# Of the refiner's scenes at full size; of sharp scenes that others may bring; of dead leaves.
REFINED_PX, SHARP_PX, LEAVES_PX = 1024, 512, 256
CROP_PX = 32  # of the small picture
# Of the crops; the rest are sharp scenes.
REFINED_SHARE, LEAVES_SHARE, SOFT_SHARE = 0.5, 0.2, 0.1
# So many crops are looked at for each one that is trained on: the busiest are kept.
CANDIDATES_A_CROP = 3
# A pixel loss averages what it cannot know away. The sum of slopes in small cells must be right, wherever they lie.
SLOPE_WEIGHT, CELL_WEIGHT, CELL_PX = 0.5, 0.5, 16
SKIP_RATIOS, GUIDANCE_SCALES = (0.5, 0.6, 0.7, 0.76), (1.0, 1.5)

# The refiner's pictures of scenes, from sketches of them.
Refine = Callable[[Sequence[Scene], random.Random], list[Picture]]


@dataclass(frozen=True)
class Pair:
    """A picture and what is left of it at a quarter of its side."""

    large: Picture
    small: Picture


@dataclass(frozen=True)
class TrainingImages:
    refined: Sequence[Pair]
    sharp: Sequence[Pair]
    soft: Sequence[Pair]
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
    refine_scenes: Refine | None,
    count: int,
    *,
    seed: int,
    held_out: bool,
    sizes: tuple[int, int, int] = (REFINED_PX, SHARP_PX, LEAVES_PX),
    cache: Path | None = None,
) -> TrainingImages:
    """`count` scenes sharp and as the refiner leaves them, half as many at half the size, and `count` dead leaves.

    Without a refiner, what stands for its pictures is soft. The refiner's pictures are kept in the file `cache`.
    """
    rng = random.Random(seed)
    scenes = [sample_either(rng, held_out=held_out) for _ in range(count)]
    refined_px, sharp_px, leaves_px = sizes
    painter = Painter(sprites, refined_px)
    sharp = [Pair(large, shrink(large)) for large in map(painter.paint, scenes)]
    refined: Sequence[Pair] = ()
    if refine_scenes is not None:
        smalls = _cached(cache, repr(scenes), partial(refine_scenes, scenes, random.Random(seed)))
        refined = [Pair(pair.large, small) for pair, small in zip(sharp, smalls, strict=True)]
    painter = Painter(sprites, sharp_px)
    others = [painter.paint(sample_either(rng, held_out=held_out)) for _ in range(count // 2)]
    sharp += [Pair(large, shrink(large)) for large in others]
    soft = [Pair(pair.large, soften(pair.small, rng)) for pair in sharp]
    leaves = []
    for _ in range(count):
        large = dead_leaves(rng, leaves_px)
        leaves.append(Pair(large, shrink(large)))
    return TrainingImages(refined or soft, sharp, soft, leaves)


def _cached(path: Path | None, key: str, make: Callable[[], list[Picture]]) -> list[Picture]:
    if path is None:
        return make()
    if state := checkpoint.load_if(path, key):
        return list(state["pictures"].numpy())
    pictures = make()
    checkpoint.save(path, key=key, pictures=torch.from_numpy(np.stack(pictures)))
    return pictures


def soften(small: Picture, rng: random.Random) -> Picture:
    """A little blur and noise."""
    blurred = Image.fromarray(small).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.7)))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0, rng.uniform(0, 1.5), small.shape)
    return (np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8)


def draw_batch(corpus: TrainingImages, batch_size: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Small and large crops in [0, 1], the busiest of those looked at."""
    candidates: list[tuple[float, int, Picture, Picture]] = []
    for _ in range(batch_size * CANDIDATES_A_CROP):
        pairs = _draw_kind(corpus, rng)
        pair = pairs[rng.randrange(len(pairs))]
        crop_px = min(CROP_PX, *pair.small.shape[:2])
        y, x = (rng.randint(0, side - crop_px) for side in pair.small.shape[:2])
        small = pair.small[y : y + crop_px, x : x + crop_px]
        large = pair.large[UPSCALE * y : UPSCALE * (y + crop_px), UPSCALE * x : UPSCALE * (x + crop_px)]
        # Leaves are busy everywhere: they compete as if they were as busy as scenes are.
        busyness = (
            rng.random() * 130
            if pairs is corpus.leaves
            else float(small.astype(np.float32).std((0, 1)).sum())
        )
        candidates.append((busyness, len(candidates), small, large))
    chosen = sorted(candidates, reverse=True)[:batch_size]
    return from_pictures([c[2] for c in chosen]), from_pictures([c[3] for c in chosen])


def _draw_kind(corpus: TrainingImages, rng: random.Random) -> Sequence[Pair]:
    kind = rng.random()
    for pairs, share in (
        (corpus.refined, REFINED_SHARE),
        (corpus.leaves, LEAVES_SHARE),
        (corpus.soft, SOFT_SHARE),
    ):
        if kind < share:
            return pairs
        kind -= share
    return corpus.sharp


def from_pictures(pictures: Sequence[Picture]) -> Tensor:
    """To [0, 1], as SwinIR takes them."""
    return to_tensor(pictures) / 2 + 0.5


def start_as_linear_filter(network: SwinIR, corpus: TrainingImages) -> None:
    """Starts the network as the best 3x3 linear enlarger: features 0 to 2 carry RGB, the body returns zeros.

    The weights of the last convolution come from least squares; what is learned is what a linear filter cannot do.
    """
    pairs = [*corpus.sharp[-12:], *corpus.leaves[:24]]
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


@torch.no_grad()
def deepened(network: SwinIR, depths: tuple[int, ...]) -> SwinIR:
    """A network of more blocks that gives the same pictures: the new ones add nothing yet."""
    if network.config.depths == depths:
        return network
    deeper = SwinIR(replace(network.config, depths=depths))
    known = network.state_dict()
    deeper.load_state_dict(known, strict=False)
    for name, tensor in deeper.state_dict().items():
        if name not in known and (".attn.proj." in name or ".mlp.fc2." in name):
            tensor.zero_()
    return deeper


def losses_of_step(network: SwinIR, corpus: TrainingImages, batch_size: int, step: int) -> Losses:
    device = device_of(network)
    small, large = (t.to(device) for t in draw_batch(corpus, batch_size, rng_of_step("swinir", step)))
    with torch.autocast(device.type, torch.bfloat16):
        found = network(small)
    found = found.float()
    error = ((found - large) ** 2 + 1e-6).sqrt().mean()
    slope_error = cell_error = torch.zeros((), device=device)
    for dim in (2, 3):
        ours, true = (picture.diff(dim=dim) for picture in (found, large))
        slope_error = slope_error + (ours - true).abs().mean()
        cells = [F.avg_pool2d(slopes.abs(), CELL_PX) for slopes in (ours, true)]
        cell_error = cell_error + (cells[0] - cells[1]).abs().mean()
    loss = error + SLOPE_WEIGHT * slope_error + CELL_WEIGHT * cell_error
    return {"loss": loss, "error": error, "slope_error": slope_error, "cell_error": cell_error}


@torch.no_grad()
def enlarge(network: SwinIR, small: Picture) -> Picture:
    found = network(from_pictures([small]).to(device_of(network)))
    return to_pictures(found.cpu() * 2 - 1)[0]


def mean_slope(pictures: Sequence[Picture]) -> float:
    """Mean absolute difference of neighbouring pixels, in grey levels: how crisp pictures are."""
    slopes = [
        np.abs(np.diff(picture.astype(np.float32), axis=axis)).mean()
        for picture in pictures
        for axis in (0, 1)
    ]
    return float(np.mean(slopes))


def measure(corpus: TrainingImages, photographs: dict[str, Picture], network: SwinIR) -> Measures:
    """dB gained over Lanczos on scenes, and over bicubic on photographs; slopes of refined ones against the truth's."""

    def gain(pairs: Sequence[Pair], ours: Sequence[Picture], filter_: Image.Resampling) -> float:
        truth = [pair.large for pair in pairs]
        return psnr(ours, truth) - psnr([enlarge_with(filter_, pair.small) for pair in pairs], truth)

    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    measures = {}
    for name, pairs in (("refined", corpus.refined), ("sharp", corpus.sharp), ("soft", corpus.soft)):
        ours = [enlarge(network, pair.small) for pair in pairs]
        measures[f"{name}_over_lanczos_db"] = gain(pairs, ours, lanczos)
        if name == "refined":
            true_slope = mean_slope([pair.large for pair in pairs])
            before = mean_slope([enlarge_with(lanczos, pair.small) for pair in pairs])
            measures["refined_slopes_of_truth"] = mean_slope(ours) / true_slope
            measures["lanczos_slopes_of_truth"] = before / true_slope
    for name, photograph in photographs.items():
        pair = Pair(photograph, shrink(photograph))
        measures[f"{name}_over_bicubic_db"] = gain([pair], [enlarge(network, pair.small)], bicubic)
    return measures


def draw_sheet(corpus: TrainingImages, network: SwinIR) -> Image.Image:
    """Lanczos, ours, truth: refined ones, then sharp ones."""
    pairs = [*corpus.refined[:3], *corpus.sharp[:1]]
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
    refine_scenes = None
    if (model_folder("refiner") / "autoencoder" / "config.json").exists():
        refine_scenes = RefinedPictures(
            load_model(model_folder("refiner")),
            generator_degrade(),
            sprites,
            skip_ratios=SKIP_RATIOS,
            guidance_scales=GUIDANCE_SCALES,
        ).make
    folder = OUTPUT_FOLDER / "swinir"
    corpus = make_corpus(
        sprites, refine_scenes, arguments.num_scenes, seed=0, held_out=False, cache=folder / "refined.pt"
    )
    measured = make_corpus(
        sprites, refine_scenes, arguments.num_measured, seed=1, held_out=True, cache=folder / "held_out.pt"
    )
    if options.from_weights:
        network = deepened(load_exported("upscaler", "swinir", SwinIR, SwinIRConfig), CONFIG.depths)
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
        __doc__, steps=8000, batch_size=4, learning_rate=2e-3, weight_decay=0.0, measure_every=500
    )
    parser.add_argument("--num-scenes", type=int, default=160, help="1024 px training pictures")
    parser.add_argument("--num-measured", type=int, default=12, help="held-out pictures to measure on")
    torch.set_num_threads(1)
    run(parser.parse_args(), fluent_sprites())


if __name__ == "__main__":
    main()
