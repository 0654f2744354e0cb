"""What tracing costs: processor time and duration of runs over four processes, with and without it, in turns.

    python -m tests.bench.tracing [--rounds 10] [--counting]

Both sets of processes run side by side on one machine; each exports to a collector that takes everything and keeps nothing.
Processor time is that of all four processes, from /proc. `--counting`: stages whose networks only count their steps, so that
what is measured is the services alone; otherwise the built-in models.
"""

import argparse
import asyncio
import http.server
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from tests.faults.processes import WORKERS, Process, free_port, gateway_command, stage_command
from triptych.client import Client
from triptych.spec import make_spec

TICKS = os.sysconf("SC_CLK_TCK")


class _Sink(http.server.BaseHTTPRequestHandler):
    """A collector that forgets."""

    num_bytes = 0

    def do_POST(self) -> None:
        _Sink.num_bytes += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def collector() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Services:
    """A gateway and a worker of each stage."""

    def __init__(self, gateway: Process, stages: list[Process]) -> None:
        self.gateway = gateway
        self._pids = [process.pid for process in (gateway, *stages)]

    def processor_s(self) -> float:
        """Of all four, threads included, since they began."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self._pids]
        return sum(int(one[11]) + int(one[12]) for one in fields) / TICKS


async def start(stack: AsyncExitStack, folder: Path, *, is_counting: bool) -> Services:
    async def run(name: str, command: list[str]) -> Process:
        process = Process(name, command, log=folder / f"{name}.log")
        stack.push_async_callback(process.close)
        await process.start()
        return process

    await asyncio.to_thread(folder.mkdir)
    commands = {
        stage: stage_command(stage, port=free_port(), step_s=0)
        if is_counting
        else [sys.executable, "-m", "triptych", "serve", stage, "--port", "0", "--threads", "1"]
        for stage in WORKERS
    }
    stages = await asyncio.gather(*(run(stage, command) for stage, command in commands.items()))
    addresses = {stage: [process.address] for stage, process in zip(WORKERS, stages, strict=True)}
    places = {"journal": str(folder / "journal.db"), "store": str(folder / "pictures")}
    return Services(await run("gateway", gateway_command(addresses, port=free_port(), **places)), stages)


async def one_run(services: Services, seed: int) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    spec = make_spec("a red house", seed=seed, candidates=4, refine_top=2, variations=1, upscale_top=1)
    began, used = time.perf_counter(), services.processor_s()
    async with Client(services.gateway.address) as client:
        async for _ in client.stream_run(spec):
            pass
    return time.perf_counter() - began, services.processor_s() - used


async def measure(rounds: int, *, is_counting: bool) -> None:
    with collector() as address, tempfile.TemporaryDirectory() as name:
        async with AsyncExitStack() as stack:
            off = await start(stack, Path(name, "off"), is_counting=is_counting)
            os.environ |= {
                "OTEL_EXPORTER_OTLP_ENDPOINT": address,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            }
            on = await start(stack, Path(name, "on"), is_counting=is_counting)
            for services in (off, on):
                await one_run(services, 0)
            taken: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
            for seed in range(1, rounds + 1):
                # Whichever is first meets another machine than the second: they take turns at it.
                pair = [("off", off), ("on", on)]
                for key, services in pair if seed % 2 else reversed(pair):
                    taken[key].append(await one_run(services, seed))
    print(f"{rounds} runs each of 4 sketches, 2 variations, 1 enlarged; {_Sink.num_bytes} bytes of spans")
    for index, what in enumerate(("duration", "processor time")):
        medians = {key: statistics.median(one[index] for one in runs) for key, runs in taken.items()}
        sums = {key: sum(one[index] for one in runs) for key, runs in taken.items()}
        print(
            f"{what}: median off {medians['off']:.3f} s, on {medians['on']:.3f} s; "
            f"all runs off {sums['off']:.2f} s, on {sums['on']:.2f} s ({100 * (sums['on'] / sums['off'] - 1):+.1f} %)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--counting", action="store_true")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    asyncio.run(measure(asked.rounds, is_counting=asked.counting))


if __name__ == "__main__":
    main()
