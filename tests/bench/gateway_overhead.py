"""What the gateway adds to a stage: milliseconds for each picture, and its share of a core at a given pace.

`python -m tests.bench.gateway_overhead [--seconds 20] [--rate 20]`. The gateway and the stage are processes of their own;
the stage has its picture ready, so that its own time is next to nothing. Both ways are measured in turns, in one run, on
the same machine. The journal and the pictures are on the disk that --folder is on, synced as they are in service.
Linux: it reads /proc.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import numpy as np

from services.images.codec import encode_png
from services.serving.channels import SERVER_OPTIONS, open_channel
from tests.bench.contending import print_conditions, print_table
from tests.bench.http_streams import Usage
from tests.gateway.fake_stage import ScriptedGenerator
from triptych.v1 import generator_pb2, generator_pb2_grpc, pipeline_pb2
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub
from triptych.v1.stage_pb2 import ImageData, ImageItem, StageEvent

SIDE_PX = 256
IMAGES_PER_RUN = 8
WARM_UP = 20


def smooth_png(seed: int) -> bytes:
    """A picture of its seed that compresses about as well as a sketch does."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (SIDE_PX // 8, SIDE_PX // 8, 3)).repeat(8, 0).repeat(8, 1)
    noise = rng.integers(0, 8, (SIDE_PX, SIDE_PX, 3))
    return encode_png(np.clip(coarse + noise, 0, 255).astype(np.uint8))


class ReadyStage(ScriptedGenerator):
    """Answers at once, with one of a few pictures that it has made before."""

    def __init__(self) -> None:
        super().__init__()
        self._pictures = [smooth_png(seed) for seed in range(64)]

    async def events(self, index, seed):
        yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
        # A number after the end of the picture, so that each is another file.
        data = self._pictures[seed % 64] + seed.to_bytes(8, "big")
        picture = ImageData(mime_type="image/png", data=data, width=SIDE_PX, height=SIDE_PX)
        yield StageEvent(image=StageEvent.FinishedImage(index=index, image=picture, seed=seed))
        yield StageEvent(timing=StageEvent.Timing(index=index))


async def serve_stage() -> None:
    stage = ReadyStage()
    await stage.start()
    sys.stdout.write(json.dumps({"address": stage.address}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await stage.kill()


@asynccontextmanager
async def process(*command: str):
    """A process that reports where it serves, and ends with its input."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield started, json.loads(await started.stdout.readline())["address"]
    finally:
        started.stdin.close()
        await started.wait()


async def direct(stub, seeds) -> None:
    """The pictures from the stage itself, each by a call, as the gateway asks for them."""

    async def make(index: int, seed: int) -> None:
        item = ImageItem(index=index, seed=seed)
        request = generator_pb2.GenerateRequest(prompt="a red house", images=[item])
        async for _ in stub.Generate(request):
            pass

    await asyncio.gather(*(make(index, seed) for index, seed in enumerate(seeds)))


async def through_gateway(stub, seeds) -> None:
    """The same pictures as one run, to its end, with their files."""
    spec = pipeline_pb2.RunSpec(prompt="a red house", seed=seeds[0])
    spec.generate.count = len(seeds)
    request = pipeline_pb2.StreamRunRequest(spec=spec)
    num_pictures = 0
    async for response in stub.StreamRun(request):
        num_pictures += bool(response.event.image_ready.image.data)
    assert num_pictures == len(seeds)


async def measure_latency(stage, gateway, num_images: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds for each picture, both ways, of requests for so many pictures; in turns."""
    alone, behind = [], []
    for number in range(-WARM_UP, rounds):
        seeds = [(number + WARM_UP) * IMAGES_PER_RUN + place for place in range(num_images)]
        for ask, stub, times in ((direct, stage, alone), (through_gateway, gateway, behind)):
            began = time.perf_counter()
            await ask(stub, seeds)
            if number >= 0:
                times.append(1e3 * (time.perf_counter() - began) / num_images)
    return alone, behind


async def measure_cpu(gateway, pid: int, rate: float, seconds: float) -> tuple[float, float]:
    """The gateway's share of a core at so many pictures a second, and the pace that was reached."""
    running: set[asyncio.Task[None]] = set()
    before, began, num_runs = Usage.of(pid), time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        seeds = [10_000 + num_runs * IMAGES_PER_RUN + place for place in range(IMAGES_PER_RUN)]
        running.add(asyncio.create_task(through_gateway(gateway, seeds)))
        num_runs += 1
        await asyncio.sleep(max(0.0, num_runs * IMAGES_PER_RUN / rate - now))
    await asyncio.gather(*running)
    elapsed = time.perf_counter() - began
    used = Usage.of(pid).cpu_s - before.cpu_s
    return used / elapsed, num_runs * IMAGES_PER_RUN / elapsed


def sync_ms(folder: Path) -> float:
    """What the disk needs to make a picture lasting, at the median: the gateway waits for it twice for each."""
    data, times = smooth_png(0), []
    for _ in range(50):
        began = time.perf_counter()
        with (folder / "probe").open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


async def main(folder: Path, rounds: int, seconds: float, rate: float) -> None:
    async with AsyncExitStack() as stack:
        _, stage_address = await stack.enter_async_context(
            process("tests.bench.gateway_overhead", "--serve-stage")
        )
        nobody = [part for kind in ("refiner", "upscaler") for part in (f"--{kind}", "127.0.0.1:1")]
        started, gateway_address = await stack.enter_async_context(
            process(
                *(
                    "triptych",
                    "serve",
                    "gateway",
                    "--port",
                    "0",
                    "--exit-with-parent",
                    "--log-level",
                    "error",
                ),
                *("--generator", stage_address, *nobody),
                *("--journal", str(folder / "journal.db"), "--store", str(folder / "pictures")),
            )
        )
        stage_channel = await stack.enter_async_context(open_channel(stage_address))
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(gateway_address, options=SERVER_OPTIONS)
        )
        stage = generator_pb2_grpc.GeneratorServiceStub(stage_channel)
        gateway = PipelineServiceStub(channel)
        rows = []
        for num_images in (1, IMAGES_PER_RUN):
            alone, behind = await measure_latency(stage, gateway, num_images, rounds)
            low, high = statistics.median(alone), statistics.median(behind)
            rows.append([f"{num_images} in a run, ms each", f"{low:.2f}", f"{high:.2f}", f"{high - low:.2f}"])
        share, pace = await measure_cpu(gateway, started.pid, rate, seconds)
    print_conditions([], 1, "grpcio", "sqlalchemy")
    print(
        f"a picture has {len(smooth_png(0))} bytes; to write and sync one takes {sync_ms(folder):.2f} ms here"
    )
    print_table(["pictures (p50)", "stage alone", "through the gateway", "added"], rows)
    print(f"at {pace:.1f} pictures a second the gateway uses {100 * share:.1f} % of a core")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=20.0, help="pictures a second")
    parser.add_argument("--folder", type=Path, help="where the journal and the pictures are meanwhile")
    parser.add_argument("--serve-stage", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve_stage:
        asyncio.run(serve_stage())
    else:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            asyncio.run(main(Path(folder), asked.rounds, asked.seconds, asked.rate))
