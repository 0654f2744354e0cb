"""Trains the built-in family's KL autoencoder: 256 px pictures to 32 x 32 latents and back.

    python -m training.refiner.train_autoencoder --steps 4000 --resume --export
    python -m training.refiner.train_autoencoder --from-weights --decoder-only --minutes 30 --resume --export

`--decoder-only` keeps the latents, so that the UNet that lives in them stays valid. It learns from whole pictures'
latents, which the UNet's pool (see latent_pool.py) has already.
Needs: the sprites (fetched once through npm), 1 GB of memory, about 0.5 CPU seconds a step.
Reached: training/NOTES.md.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from services.refiner.networks.autoencoder import Attention, Autoencoder, AutoencoderConfig, ResBlock
from training.export import load_exported, write_part
from training.images import (
    contact_sheet,
    crops_on_objects,
    object_psnr,
    psnr,
    sample_either,
    to_pictures,
    to_tensor,
)
from training.loop import (
    OUTPUT_FOLDER,
    Losses,
    Measures,
    Options,
    device_of,
    option_parser,
    options_from,
    rng_of_step,
    train,
)
from training.refiner.degradations import sketch_degrade
from training.refiner.latent_pool import Pool, cached_pool
from training.world.drawing import Painter
from training.world.scenes import Scene, sample_scenes
from training.world.sprites import fluent_sprites

CONFIG = AutoencoderConfig(
    image_size=256, ch=32, ch_mult=(1, 1, 2, 4), num_res_blocks=1, z_channels=8, embed_dim=8, norm_groups=2
)
CROP_PX, EARLY_CROP_PX = 96, 48
# So large a share of the steps sees small crops: at first, many steps teach more than many pixels.
EARLY_SHARE = 0.8
OBJECT_WEIGHT = 4.0  # whole-picture losses hide destroyed objects
KL_WEIGHT = 1e-4  # per latent number; enough that the decoder bears a little noise
# Where the encoder's logvar starts: at 0 the noise drowns colours before they are learned, and they stay drowned.
FIRST_LOGVAR = -6.0
# Of the later steps, every so manieth sees few whole pictures instead of many crops, for the attention in the middle.
WHOLE_PICTURE_EVERY = 4
SLOPE_WEIGHT = 0.5
# Of `--decoder-only`: crops of whole pictures' latents, and the noise on them, at the diffusion's scale.
DECODED_CROP_PX = 128
LATENT_NOISE = 0.03


def losses_of_step(network: Autoencoder, painter: Painter, options: Options, step: int) -> Losses:
    rng = rng_of_step("autoencoder", step)
    is_early = step < EARLY_SHARE * options.steps and not options.from_weights
    is_whole = not is_early and step % WHOLE_PICTURE_EVERY == 0
    crop_px = painter.size if is_whole else min(painter.size, EARLY_CROP_PX if is_early else CROP_PX)
    count = max(1, options.batch_size // 4) if is_whole else options.batch_size
    scenes = [sample_either(rng) for _ in range(count)]
    crops = crops_on_objects(painter, scenes, rng, crop_px=crop_px, stride=network.config.downsampling)
    device = device_of(network)
    images, masks = (tensor.to(device) for tensor in crops[:2])
    with torch.autocast(device.type, torch.bfloat16):
        posterior = network.encode(images)
        noise = torch.randn(posterior.mean.shape).to(device)
        decoded = network.decode(posterior.sample(noise))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    reconstruction = reconstruction_loss(decoded.float(), images, 1 + OBJECT_WEIGHT * masks)
    return {"loss": reconstruction + KL_WEIGHT * kl, "reconstruction": reconstruction, "kl": kl}


def decoder_losses_of_step(
    network: Autoencoder, painter: Painter, pool: Pool, options: Options, step: int
) -> Losses:
    """Of the decoder alone, on crops of the latents of whole pictures."""
    rng = rng_of_step("decoder", step)
    stride, device = network.config.downsampling, device_of(network)
    is_whole = step % WHOLE_PICTURE_EVERY == 0
    crop_px = painter.size if is_whole else min(DECODED_CROP_PX, painter.size)
    count = max(1, options.batch_size // 4) if is_whole else options.batch_size
    rows = [rng.randrange(len(pool.scenes)) for _ in range(count)]
    images, masks, corners = crops_on_objects(
        painter, [pool.scenes[row] for row in rows], rng, crop_px=crop_px, stride=stride
    )
    side = crop_px // stride
    latents = torch.stack(
        [
            pool.true[row, :, top // stride : top // stride + side, left // stride : left // stride + side]
            for row, (top, left) in zip(rows, corners, strict=True)
        ]
    )
    latents = (latents + LATENT_NOISE * torch.randn(latents.shape)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        decoded = network.decode(network.from_diffusion(latents))
    weight = 1 + OBJECT_WEIGHT * masks.to(device)
    return {"loss": reconstruction_loss(decoded.float(), images.to(device), weight)}


def reconstruction_loss(decoded: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Absolute and squared errors, and errors of the slopes, which blur pays for; objects weigh more."""
    error = decoded - images
    slopes = [error.diff(dim=dim, append=error.narrow(dim, -1, 1)).abs() for dim in (2, 3)]
    return (weight * (error.abs() + 0.5 * error**2 + SLOPE_WEIGHT * (slopes[0] + slopes[1]))).mean()


def start_near_linear(network: Autoencoder) -> None:
    """Starts as little more than a linear code: residual branches say nothing, the rest is orthogonal.

    From PyTorch's own start the first thousand steps see no colours. The latents' noise starts small, too.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type] # every convolution here has one
        for module in network.modules():
            if isinstance(module, ResBlock | Attention):
                nn.init.zeros_((module.conv2 if isinstance(module, ResBlock) else module.proj_out).weight)
        network.quant_conv.weight[network.config.embed_dim :] = 0
        network.quant_conv.bias[network.config.embed_dim :] = FIRST_LOGVAR  # type: ignore[index]


@torch.no_grad()
def reconstruct(network: Autoencoder, images: Tensor) -> Tensor:
    """Through the mean of the latents' distribution, a few at a time."""
    chunks = torch.split(images.to(device_of(network)), 8)
    return torch.cat([network.decode(network.encode(chunk).mean).cpu() for chunk in chunks])


def measure(painter: Painter, scenes: list[Scene], network: Autoencoder) -> Measures:
    truth = [painter.paint(scene) for scene in scenes]
    found = to_pictures(reconstruct(network, to_tensor(truth)))
    masks = [painter.object_mask(scene) for scene in scenes]
    return {"psnr_db": psnr(found, truth), "object_psnr_db": object_psnr(found, truth, masks)}


def draw_sheet(painter: Painter, scenes: list[Scene], network: Autoencoder) -> Image.Image:
    """Real above, decoded below."""
    truth = [painter.paint(scene) for scene in scenes]
    return contact_sheet([truth, to_pictures(reconstruct(network, to_tensor(truth)))])


@torch.no_grad()
def latent_spread(network: Autoencoder, painter: Painter, scenes: list[Scene]) -> float:
    """The standard deviation of latents: its inverse is the scale factor that the diffusion works at."""
    images = to_tensor([painter.paint(scene) for scene in scenes]).to(device_of(network))
    return float(torch.cat([network.encode(chunk).mean for chunk in torch.split(images, 8)]).std())


def run(arguments: argparse.Namespace, make_painter: Callable[[], Painter]) -> Autoencoder:
    options = options_from(arguments)
    torch.manual_seed(0)
    if options.from_weights:
        network = load_exported("refiner", "autoencoder", Autoencoder, AutoencoderConfig)
    else:
        network = Autoencoder(CONFIG)
        start_near_linear(network)
    painter = make_painter()
    scenes = sample_scenes(arguments.num_measured, 1, held_out=True)
    losses = partial(losses_of_step, network, painter, options)
    if arguments.decoder_only:
        for part in (network.encoder, network.quant_conv):
            part.requires_grad_(False)
        pool = cached_pool(
            OUTPUT_FOLDER / "unet" / "pool.pt", arguments.num_scenes, network, painter, sketch_degrade()
        )
        losses = partial(decoder_losses_of_step, network, painter, pool, options)
    average = train(
        "autoencoder",
        network,
        losses,
        options,
        measure=partial(measure, painter, scenes),
        sheet=partial(draw_sheet, painter, scenes[:8]),
    )
    if arguments.export:
        config = average.config
        if not arguments.decoder_only:
            config = replace(config, scale_factor=round(1 / latent_spread(average, painter, scenes), 5))
        write_part("refiner", "autoencoder", average, asdict(config))
    return average


def main() -> None:
    parser = option_parser(
        __doc__, steps=4000, batch_size=8, learning_rate=1.2e-3, measure_every=250, warm_up_steps=50
    )
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents as they are")
    parser.add_argument("--num-scenes", type=int, default=1000, help="of the pool, with --decoder-only")
    parser.add_argument("--num-measured", type=int, default=32, help="held-out pictures to measure on")
    torch.set_num_threads(1)
    run(parser.parse_args(), lambda: Painter(fluent_sprites(), CONFIG.image_size))


if __name__ == "__main__":
    main()
