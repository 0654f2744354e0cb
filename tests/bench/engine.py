"""The engine with the generator: callers that arrive at random, beside the same stage serving one request at a time.

`python -m tests.bench.engine [--full] [--sizes tiny mini] [--threads N]`. Both see the same arrivals, twice as many as
can be served one at a time. It also counts compilations, prices previews, and lets a reader stop reading.
"""

import argparse
import asyncio
import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from services.engine.engine import Engine
from services.engine.events import Finished, Preview
from services.engine.stepper import JobRequest
from services.generator.dalle.batch import GenerateJob
from services.generator.dalle.conversion.random_weights import write_random
from services.generator.dalle.device import set_up_device
from services.generator.dalle.model import load_model
from services.generator.dalle.stepper import GeneratorStepper
from tests.bench.compilations import Compilations
from tests.bench.contending import CACHE, print_conditions, print_table

NUM_SLOTS = 8
PREVIEW_EVERY = 16
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 10.0}
# Requests arrive on average after this share of the time that one takes alone.
GAP = 0.5
MAX_IMAGES = 64


@dataclass
class Request:
    """When a caller saw what, in seconds after it asked."""

    first_preview: float = float("nan")
    finished: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Served:
    requests: list[Request]
    elapsed_s: float
    cpu_s: float

    @property
    def images_per_s(self) -> float:
        return sum(len(request.finished) for request in self.requests) / self.elapsed_s

    def times(self, of: Callable[[Request], float]) -> np.ndarray:
        return np.array([of(request) for request in self.requests])


WHEN: dict[str, Callable[[Request], float]] = {
    "first preview": lambda request: request.first_preview,
    "first picture": lambda request: request.finished[0],
    "last picture": lambda request: request.finished[-1],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="1, 4, 8 and 16 callers at both sizes; a reader stops for 60 s"
    )
    parser.add_argument("--sizes", nargs="+", default=["tiny", "mini"], choices=["tiny", "mini"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.environ.setdefault("TRIPTYCH_JAX_CACHE", str(CACHE / "jax"))
    set_up_device("cpu", threads=options.threads)
    compilations = Compilations()
    print_conditions([], options.threads, "jax", "jaxlib", "numpy")
    for size in options.sizes:
        stepper = warm_stepper(size)
        before = compilations.count
        if options.full:
            callers, rounds = [1, 4, 8, 16], 1 if size == "mini" else 3
        else:
            callers, rounds = [8] if size == "mini" else [1, 4, 8, 16], 1
        asyncio.run(measure(stepper, size, callers, rounds, stop_s=60 if options.full else 10))
        print(f"compilations after the warm-up: {compilations.count - before}\n")


def warm_stepper(size: str) -> GeneratorStepper:
    folder = CACHE / f"generator-{size}"
    if not (folder / "vqgan" / "config.json").is_file():
        write_random(size, folder)
    stepper = GeneratorStepper(load_model(folder), num_slots=NUM_SLOTS)
    stepper.warm_up()
    return stepper


async def measure(
    stepper: GeneratorStepper, size: str, callers: Sequence[int], rounds: int, *, stop_s: float
) -> None:
    images = 2 if size == "tiny" else 1
    rng = np.random.default_rng(0)
    async with Engine(stepper, max_queue=1024) as engine:
        alone_s = (await serve(engine, [0.0], images)).elapsed_s
        print(
            f"generator, {size}: {images} images a request, a preview every {PREVIEW_EVERY} tokens, {NUM_SLOTS} slots"
        )
        print(f"a request alone takes {alone_s:.1f} s; they arrive every {GAP * alone_s:.1f} s on average\n")
        rows = []
        for count in callers:
            batched, single = [], []
            for _ in range(rounds):
                arrivals = np.cumsum(rng.exponential(GAP * alone_s, count) * (np.arange(count) > 0)).tolist()
                batched.append(await serve(engine, arrivals, images))
                single.append(await serve(engine, arrivals, images, one_at_a_time=True))
            rows += rows_of(count, batched, single)
        print_table(
            ("callers", "", "batched, s", "p50", "p95", "one at a time, s", "p50", "p95", "ratio of means"),
            rows,
        )
        await price_previews(engine, images, rounds=3 if size == "tiny" else 1)
        if size == "tiny":
            await stop_reading(engine, stop_s)


def rows_of(count: int, batched: list[Served], single: list[Served]) -> list[list[str]]:
    rows = []
    for name, of in WHEN.items():
        ours, theirs = (
            np.concatenate([served.times(of) for served in rounds]) for rounds in (batched, single)
        )
        cells = [
            f"{cell:.1f}"
            for times in (ours, theirs)
            for cell in (times.mean(), np.percentile(times, 50), np.percentile(times, 95))
        ]
        rows.append([str(count), name, *cells, f"{ours.mean() / theirs.mean():.2f}"])
    ours_per_s, theirs_per_s = (
        np.mean([served.images_per_s for served in rounds]) for rounds in (batched, single)
    )
    rows.append(
        [
            str(count),
            "images/s",
            f"{ours_per_s:.2f}",
            "",
            "",
            f"{theirs_per_s:.2f}",
            "",
            "",
            f"{ours_per_s / theirs_per_s:.2f}",
        ]
    )
    return rows


async def serve(
    engine: Engine[GenerateJob],
    arrivals: Sequence[float],
    images: int,
    *,
    one_at_a_time: bool = False,
    preview_every: int = PREVIEW_EVERY,
) -> Served:
    """Lets a caller come at each of `arrivals`; one at a time, each has the whole stage until it is done."""
    turn = asyncio.Lock()
    started_at, cpu_started_at = time.monotonic(), time.process_time()

    async def call(number: int, after_s: float) -> Request:
        await asyncio.sleep(after_s)
        asked_at = time.monotonic()
        request = Request()
        async with turn if one_at_a_time else nullcontext():
            jobs = [GenerateJob(f"a red house, number {number}", seed, **SAMPLING) for seed in range(images)]
            tickets = [JobRequest(index, job, preview_every) for index, job in enumerate(jobs)]
            async with engine.submit(tickets, caller=str(number)) as events:
                async for event in events:
                    since_s = time.monotonic() - asked_at
                    if isinstance(event, Preview) and np.isnan(request.first_preview):
                        request.first_preview = since_s
                    elif isinstance(event, Finished):
                        request.finished.append(since_s)
        return request

    requests = await asyncio.gather(*(call(number, after_s) for number, after_s in enumerate(arrivals)))
    return Served(requests, time.monotonic() - started_at, time.process_time() - cpu_started_at)


async def price_previews(engine: Engine[GenerateJob], images: int, *, rounds: int) -> None:
    """A full batch with previews and without, in turns."""
    arrivals = [0.0] * (NUM_SLOTS // images)
    wall, cpu = [], []
    for _ in range(rounds):
        without = await serve(engine, arrivals, images, preview_every=0)
        seen = await serve(engine, arrivals, images)
        wall.append(seen.elapsed_s / without.elapsed_s)
        cpu.append(seen.cpu_s / without.cpu_s)
    print(
        f"previews every {PREVIEW_EVERY} tokens of {NUM_SLOTS} pictures cost {100 * (np.median(cpu) - 1):+.1f} % "
        f"processor time, {100 * (np.median(wall) - 1):+.1f} % of the clock"
    )


async def stop_reading(engine: Engine[GenerateJob], stop_s: float) -> None:
    """A caller asks for a great deal and reads nothing for a while; another one comes meanwhile."""
    undisturbed = await serve(engine, [0.0], 1)
    job = GenerateJob("a red house", 0, **SAMPLING)
    tickets = [JobRequest(index, job, preview_every=1) for index in range(MAX_IMAGES)]
    before_mb = resident_mb()
    async with engine.submit(tickets, caller="stopped") as unread:
        other = await serve(engine, [0.0], 1)
        await asyncio.sleep(max(0.0, stop_s / 2 - other.elapsed_s))
        half_mb = resident_mb() - before_mb
        await asyncio.sleep(stop_s / 2)
        grown_mb = resident_mb() - before_mb
        events = []
        while not events or not isinstance(events[-1], Finished):
            events.append(await anext(unread))
    print(
        f"a reader that stopped for {stop_s:.0f} s with {MAX_IMAGES} images asked for and a preview at every step: memory "
        f"grew by {half_mb:.0f} MB in the first half of that and by {grown_mb:.0f} MB in all (largest so far {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB); "
        f"another caller's picture took {other.elapsed_s:.1f} s beside its seven, {undisturbed.elapsed_s:.1f} s alone"
    )


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
