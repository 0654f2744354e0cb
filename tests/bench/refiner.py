"""A guided step of the refiner beside diffusers' UNet, in float32 and bfloat16, with 1 and 4 images in a batch.

`python -m tests.bench.refiner [--full] [--sizes real tiny] [--threads N]`. All compute with the same weights; how far
their answers are apart is printed too.
"""

import argparse
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.refiner.conversion.random_weights import FAMILIES, write_random_part
from tests.bench.contending import CACHE, Contender, Series, Spread, print_conditions, print_table, ratio

IMAGES = (1, 4)
PEER = "diffusers float32"
OURS = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="seven rounds in place of three")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "real"], choices=["tiny", "real"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for size in options.sizes:
        compare(size, threads=options.threads, rounds=7 if options.full else 3)


def model_folder(size: str) -> Path:
    """The UNet and the autoencoder in full size; of what is asked once for a prompt, small ones of the same width."""
    parts = dict(FAMILIES["glid-3-xl" if size == "real" else "tiny"])
    if size == "real":
        parts["bert"] = replace(parts["bert"], n_layer=1)
        parts["clip"] = FAMILIES["tiny"]["clip"]
    folder = CACHE / f"refiner-{size}"
    for part, config in parts.items():
        if not (folder / part / "config.json").is_file():
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_random_part(part, config, folder / part)
    return folder


def compare(size: str, *, threads: int, rounds: int) -> None:
    folder = model_folder(size)
    with ExitStack() as stack:
        peer = stack.enter_context(
            Contender(PEER, "diffusers_peer", str(folder / "unet"), threads=threads, environment="torch")
        )
        ours = [
            stack.enter_context(Contender(dtype, "our_refiner", str(folder), dtype, threads=threads))
            for dtype in OURS
        ]
        print_conditions([peer, *ours], threads)
        config = FAMILIES["glid-3-xl" if size == "real" else "tiny"]
        side, tokens = config["autoencoder"].latent_size, config["bert"].max_seq_len  # type: ignore[union-attr] # each its own kind
        print(f"refiner, {size}: latents of {side} x {side}, {tokens} text tokens, prompt and no prompt")
        print_differences(size, peer, ours)
        single: dict[str, Spread] = {}
        rows = []
        for images in IMAGES:
            steps = {contender.name: Series() for contender in (peer, *ours)}
            decoding: dict[str, float] = {}
            previews: dict[str, float] = {}
            peer.do("begin", images=images, side=side, text_tokens=tokens)
            for contender in ours:
                contender.do("begin", images=images)
            for contender in (peer, *ours):
                contender.do("step", images=images)  # what a first call costs more is nobody's
            for _ in range(rounds):
                for contender in (peer, *ours):
                    steps[contender.name].add(contender.do("step", images=images))
            for contender in ours:
                decoding[contender.name] = contender.do("finish", images=images).cpu_s
                contender.do("preview", images=images)  # the first one fits its colours
                previews[contender.name] = contender.do("preview", images=images).cpu_s
                contender.do("release", images=images)
            for name, series in steps.items():
                cost = Spread.of(series.cpu_s)
                single.setdefault(name, cost)
                rows.append(
                    [
                        str(images),
                        name,
                        f"{Spread.of(series.wall_s):.3g}",
                        f"{cost:.3g}",
                        f"{ratio(steps[PEER].wall_s, series.wall_s):.3g}",
                        f"{ratio(steps[PEER].cpu_s, series.cpu_s):.3g}",
                        f"{cost.median / (images * single[name].median):.3g}",
                        f"{decoding[name]:.2f}" if name in decoding else "-",
                        f"{1e3 * previews[name]:.0f}" if name in previews else "-",
                    ]
                )
        print_table(
            (
                "images",
                "",
                "s/step",
                "CPU s",
                "faster",
                "of CPU time",
                "of single steps",
                "decoding, CPU s",
                "previews, CPU ms",
            ),
            rows,
        )


def print_differences(size: str, peer: Contender, ours: list[Contender]) -> None:
    config = FAMILIES["glid-3-xl" if size == "real" else "tiny"]
    inputs, output = str(CACHE / "refiner-inputs.npz"), str(CACHE / "refiner-noise.npy")
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    side = config["autoencoder"].latent_size  # type: ignore[union-attr] # each its own kind
    width = config["bert"].n_embed  # type: ignore[union-attr]
    np.savez(
        inputs,
        x=normal(1, 4, side, side),
        context=normal(1, config["bert"].max_seq_len, width),  # type: ignore[union-attr]
        timesteps=np.array([741.5], np.float32),
    )

    def noise_of(contender: Contender) -> np.ndarray:
        contender.do("noise", inputs=inputs, output=output)
        return np.load(output)

    expected = noise_of(peer)
    largest = np.abs(expected).max()
    for contender in ours:
        difference = np.abs(noise_of(contender) - expected).max() / largest
        print(f"largest difference of {contender.name}: {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
