"""The generator beside min-dalle at 1, 4 and 9 images, and beside how fast the machine reads memory.

`python -m tests.bench.generator [--full] [--sizes mini tiny] [--threads N]`. Both draw with the same settings. In
short, min-dalle makes a few steps in each round (every step of its takes the same time); at length, all of them.
"""

import argparse
import os
from contextlib import ExitStack
from dataclasses import dataclass, field

from services.generator.dalle.conversion.random_weights import write_random
from tests.bench.contending import CACHE, Contender, Series, Spread, print_conditions, print_table, ratio

IMAGES = (1, 4, 9)
IMAGE_TOKENS = 256
ROUNDS = 16
PROMPT = "a red house under a full moon"
PROMPT_TOKENS = 10
SAMPLING = {"temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance_scale": 16.0}
# min-dalle has one VQGAN, of the published size.
SIZES_WITH_DETOKENIZER = ("mini",)


@dataclass
class Measured:
    """Seconds a step, and seconds to decode all images, of both."""

    ours: Series = field(default_factory=Series)
    peer: Series = field(default_factory=Series)
    our_decoding: Series = field(default_factory=Series)
    peer_decoding: Series = field(default_factory=Series)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every step of min-dalle, three times")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=["tiny", "mini"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for size in options.sizes:
        compare(size, threads=options.threads, full=options.full)


def compare(size: str, *, threads: int, full: bool) -> None:
    folder = CACHE / f"generator-{size}"
    if not (folder / "vqgan" / "config.json").is_file():
        write_random(size, folder)
    with ExitStack() as stack:
        ours = stack.enter_context(Contender("ours", "our_generator", str(folder), threads=threads))
        peer = stack.enter_context(
            Contender("min-dalle", "min_dalle_peer", size, threads=threads, environment="torch")
        )
        print_conditions([ours, peer], threads)
        print(f"generator, {size}: prompt and no prompt, float32, {SAMPLING}")
        ours.do("warm_up")
        bandwidth: list[Spread] = []
        rows = []
        for images in IMAGES:
            speed = Series()
            measured = Measured()
            for _ in range(3 if full else 1):
                run(ours, peer, images, measured, speed, size=size, peer_steps=16 if full else 2)
            num_bytes = ours.do("bytes_per_step").result
            bandwidth.append(Spread.of(2**30 / wall / 1e9 for wall in speed.wall_s))
            rows.append(row(images, measured, num_bytes, bandwidth[-1]))
        print_table(HEADER, rows)
        print("memory was read at " + ", ".join(f"{speed:.0f}" for speed in bandwidth) + " GB/s")


def run(
    ours: Contender,
    peer: Contender,
    images: int,
    measured: Measured,
    speed: Series,
    *,
    size: str,
    peer_steps: int,
) -> None:
    """All steps of ours, in as many parts as there are rounds, and in between some steps of the peer."""
    ours.do("begin", images=images, prompt=PROMPT, sampling=SAMPLING)
    peer.do(
        "begin",
        images=images,
        text_tokens=PROMPT_TOKENS,
        top_k=SAMPLING["top_k"],
        guidance_scale=SAMPLING["guidance_scale"],
    )
    steps = IMAGE_TOKENS // ROUNDS
    peer.do("advance", position=0, steps=1)
    for i in range(ROUNDS):
        measured.ours.add(ours.do("advance", images=images, steps=steps), 1 / steps)
        measured.peer.add(peer.do("advance", position=i * steps, steps=peer_steps), 1 / peer_steps)
        speed.add(ours.do("read_memory"))
    measured.our_decoding.add(ours.do("finish", images=images))
    if size in SIZES_WITH_DETOKENIZER:
        measured.peer_decoding.add(peer.do("finish"))
    ours.do("release", images=images)


HEADER = (
    "images",
    "ours, ms/step",
    "CPU ms",
    "min-dalle, ms/step",
    "CPU ms",
    "ratio",
    "of CPU time",
    "ours, images/s",
    "ratio with decoding",
    "floor, ms",
    "ours / floor",
    "floor of a whole cache",
)


def row(images: int, measured: Measured, num_bytes: dict[str, int], bandwidth: Spread) -> list[str]:
    ours, peer = measured.ours, measured.peer
    step, peer_step = (sum(series.wall_s) / len(series.wall_s) for series in (ours, peer))
    total = IMAGE_TOKENS * step + Spread.of(measured.our_decoding.wall_s).median
    with_decoding = "-"
    if measured.peer_decoding.wall_s:
        peer_total = IMAGE_TOKENS * peer_step + Spread.of(measured.peer_decoding.wall_s).median
        with_decoding = f"{peer_total / total:.1f}"

    def floor_ms(positions: float) -> float:
        # The fastest round is what the machine can do.
        return (num_bytes["weights"] + images * positions * num_bytes["position"]) / bandwidth.high / 1e6

    # A step reads what was drawn before it: half of the positions, on average.
    filled, whole = floor_ms(IMAGE_TOKENS / 2), floor_ms(IMAGE_TOKENS)
    return [
        str(images),
        f"{Spread.of(1e3 * s for s in ours.wall_s):.1f}",
        f"{Spread.of(1e3 * s for s in ours.cpu_s):.1f}",
        f"{Spread.of(1e3 * s for s in peer.wall_s):.0f}",
        f"{Spread.of(1e3 * s for s in peer.cpu_s):.0f}",
        f"{ratio(peer.wall_s, ours.wall_s):.1f}",
        f"{ratio(peer.cpu_s, ours.cpu_s):.1f}",
        f"{images / total:.2f}",
        with_decoding,
        f"{filled:.1f}",
        f"{1e3 * step / filled:.2f}",
        f"{whole:.1f} ({1e3 * step / whole:.2f})",
    ]


if __name__ == "__main__":
    main()
