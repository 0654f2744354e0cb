"""SwinIR beside spandrel's, in float32 and bfloat16, and how much memory a tile bounds.

`python -m tests.bench.upscaler [--full] [--sizes large tiny] [--threads N]`. In short a picture of 64 pixels a side;
at length one of 256. All compute with the same weights; how far their pictures are apart is printed too.
"""

import argparse
import os
from contextlib import ExitStack

import numpy as np

from services.upscaler.conversion.random_weights import write_random
from tests.bench.contending import CACHE, Contender, Series, Spread, print_conditions, print_table, ratio

NAMES = {"large": "real-l", "tiny": "tiny"}
PEER = "spandrel float32"
OURS = ("float32", "bfloat16")
# A picture that is one tile, and one that is many of the same size.
BOUNDED_TILE, BOUNDED_SIDES = 64, (56, 184)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="256 pixels a side, twice")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "large"], choices=["tiny", "large"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for size in options.sizes:
        compare(size, threads=options.threads, full=options.full)


def compare(size: str, *, threads: int, full: bool) -> None:
    folder = CACHE / f"upscaler-{size}"
    if not (folder / "swinir" / "model.safetensors").is_file():
        write_random(NAMES[size], folder)
    side, rounds = (256, 2) if full else (64, 3)
    with ExitStack() as stack:
        peer = stack.enter_context(
            Contender(PEER, "spandrel_peer", str(folder / "swinir"), threads=threads, environment="torch")
        )
        ours = [
            stack.enter_context(Contender(dtype, "our_upscaler", str(folder), dtype, threads=threads))
            for dtype in OURS
        ]
        print_conditions([peer, *ours], threads)
        print(f"upscaler, SwinIR {NAMES[size]}: {side} x {side} to {4 * side} x {4 * side}")
        enlarge(peer, ours, draw(32), rounds=1)  # what a first call costs more is nobody's
        series, peaks, outputs = enlarge(peer, ours, draw(side), rounds=rounds)
        rows = [
            [
                name,
                f"{Spread.of(one.wall_s):.3g}",
                f"{Spread.of(one.cpu_s):.3g}",
                f"{ratio(series[PEER].wall_s, one.wall_s):.3g}",
                f"{ratio(series[PEER].cpu_s, one.cpu_s):.3g}",
                f"{peaks[name]:.0f}",
            ]
            for name, one in series.items()
        ]
        print_table(("", "s", "CPU s", "faster", "of CPU time", "peak MB"), rows)
        for contender in ours:
            print(f"{contender.name}: {difference(outputs[contender.name], outputs[PEER])}")
        print_memory(ours)


def draw(side: int) -> str:
    """A picture with smooth parts and edges, in a file."""
    y, x = np.mgrid[0:side, 0:side] / 32
    waves = np.stack([np.sin(3 * x + y), np.cos(2 * y), np.sign(np.sin(x * y))], axis=-1)
    path = CACHE / f"picture-{side}.npy"
    np.save(path, (127.5 * (1 + waves)).astype(np.uint8))
    return str(path)


def enlarge(
    peer: Contender, ours: list[Contender], picture: str, *, rounds: int
) -> tuple[dict[str, Series], dict[str, float], dict[str, np.ndarray]]:
    """Times of each, and of the contenders, and ours in the service's tiles; peak memory; what came out whole."""
    series: dict[str, Series] = {contender.name: Series() for contender in (peer, *ours)}
    series |= {f"{contender.name}, tiles": Series() for contender in ours}
    peaks: dict[str, float] = {}
    outputs: dict[str, np.ndarray] = {}
    output = str(CACHE / "enlarged.npy")
    for _ in range(rounds):
        for contender in (peer, *ours):
            took = series[contender.name].add(contender.do("whole", picture=picture, output=output))
            peaks[contender.name] = took.peak_mb
            outputs[contender.name] = np.load(output)
        for contender in ours:
            name = f"{contender.name}, tiles"
            took = series[name].add(contender.do("tiled", picture=picture, tile_size=160, tile_overlap=32))
            peaks[name] = took.peak_mb
    return series, peaks, outputs


def difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    levels = [(picture.clip(0, 1) * 255).round() for picture in (ours, theirs)]
    apart = np.abs(levels[0] - levels[1])
    return (
        f"largest difference {np.abs(ours - theirs).max():.1e}; of 8-bit values {100 * (apart > 0).mean():.2f} % "
        f"differ, by at most {apart.max():.0f}"
    )


def print_memory(ours: list[Contender]) -> None:
    for contender in ours:
        peaks = [
            contender.do(
                "tiled", picture=draw(side), tile_size=BOUNDED_TILE, tile_overlap=BOUNDED_TILE // 4
            ).peak_mb
            for side in BOUNDED_SIDES
        ]
        print(
            f"{contender.name}: peak memory with tiles of {BOUNDED_TILE} pixels: "
            + ", ".join(
                f"{peak:.0f} MB for {side} x {side}" for peak, side in zip(peaks, BOUNDED_SIDES, strict=True)
            )
        )


if __name__ == "__main__":
    main()
