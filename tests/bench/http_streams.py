"""What event streams cost a gateway: its processor time and memory while many read one run and many wait for others.

`python -m tests.bench.http_streams [--readers 50] [--idle 200] [--seconds 30] [--restart]`. The gateway is a process of its own,
as it is served; the stages are scripted, and send previews of a real size at a real pace. Linux: it reads /proc.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from tests.gateway.fake_stage import ScriptedGenerator, ScriptedRefiner, ScriptedUpscaler, image
from triptych.v1.stage_pb2 import StageEvent

NUM_STEPS = 256
CANDIDATES = 8
# Runs that wait for a person to choose, each watched by so many.
WATCHERS_OF_A_WAITING_RUN = 10


@dataclass
class Reader:
    """What one stream brought."""

    num_bytes: int = 0
    num_events: int = 0
    num_previews: int = 0
    is_finished: bool = False
    # Set when a run has sent all events before the selection that it waits for.
    waits: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Usage:
    """Of the gateway's process."""

    cpu_s: float
    rss_mb: float
    peak_mb: float

    @classmethod
    def of(cls, pid: int) -> "Usage":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        ticks = int(fields[11]) + int(fields[12])
        resident, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return cls(ticks / os.sysconf("SC_CLK_TCK"), resident, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=50)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="that the watched run takes")
    parser.add_argument(
        "--previews-per-s", type=float, default=8.0, help="of the run, all its pictures together"
    )
    parser.add_argument("--preview-kb", type=int, default=100, help="a PNG of 256 x 256 pixels has about 100")
    parser.add_argument(
        "--restart",
        action="store_true",
        help="the idle streams are of runs that waited when the gateway started",
    )
    asyncio.run(measure(parser.parse_args()))


async def measure(options: argparse.Namespace) -> None:
    generator = ScriptedGenerator()
    generator._script = partial(sketch, options)
    async with AsyncExitStack() as stack:
        stages = [generator, ScriptedRefiner(), ScriptedUpscaler()]
        for stage in stages:
            await stage.start()
            stack.push_async_callback(stage.kill)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        waiting: list[str] = []
        if options.restart:
            async with gateway(stages, folder) as (_, url), client(url) as http:
                waiting = await begin_waiting(http, options.idle)
        pid, url = await stack.enter_async_context(gateway(stages, folder))
        http = await stack.enter_async_context(client(url))
        alone = Usage.of(pid)
        waiting = waiting or await begin_waiting(http, options.idle)
        idlers = [Reader() for _ in range(options.idle)]
        idle = [
            asyncio.create_task(read(url, waiting[i % len(waiting)], reader))
            for i, reader in enumerate(idlers)
        ]
        await asyncio.gather(*(reader.waits.wait() for reader in idlers))
        before = Usage.of(pid)
        await asyncio.sleep(options.seconds)
        between = Usage.of(pid)
        watched = await begin(http, "watched", {"generate": {"count": CANDIDATES}})
        readers = [Reader() for _ in range(options.readers)]
        began_at = time.perf_counter()
        await asyncio.gather(*(read(url, watched, reader) for reader in readers))
        took_s = time.perf_counter() - began_at
        after = Usage.of(pid)
        num_open = sum(not task.done() for task in idle)
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)
    print(f"{os.cpu_count()} cores; the gateway alone: {alone.rss_mb:.0f} MB")
    cores = (between.cpu_s - before.cpu_s) / options.seconds
    print(f"{num_open} idle streams for {options.seconds:.0f} s: {cores:.3f} cores, {between.rss_mb:.0f} MB")
    cores = (after.cpu_s - between.cpu_s) / took_s
    previews = sum(reader.num_previews for reader in readers) / max(1, len(readers))
    megabytes = sum(reader.num_bytes for reader in readers) / 2**20
    print(
        f"and {options.readers} readers of one run for {took_s:.1f} s: {cores:.3f} cores, {after.rss_mb:.0f} MB, "
        f"peak {after.peak_mb:.0f} MB; {previews:.0f} previews each, {megabytes / took_s:.1f} MB/s in all, "
        f"{sum(reader.is_finished for reader in readers)} saw the end"
    )


async def begin_waiting(http: httpx.AsyncClient, num_readers: int) -> list[str]:
    """Runs that wait for somebody to choose, enough for so many readers."""
    spec = {"manual": {}, "generate": {"count": 1}, "refine": {"count": 1}}
    names = [
        await begin(http, f"waiting {i}", spec) for i in range(-(-num_readers // WATCHERS_OF_A_WAITING_RUN))
    ]
    for name in names:
        async with http.stream("GET", f"/{name}/events") as answer:
            async for line in answer.aiter_lines():
                if '"selection_required"' in line:
                    break
    return names


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=60)


async def sketch(options: argparse.Namespace, index: int, seed: int):
    """One candidate of the watched run, or at once for a run that then waits."""
    picture = image(seed)
    yield StageEvent(accepted=StageEvent.Accepted(num_images=1))
    if seed >= WATCHED_SEED:
        shown = image(seed)
        shown.data += os.urandom(options.preview_kb * 1000)
        pause_s = CANDIDATES / options.previews_per_s
        num_previews = round(options.seconds / pause_s)
        for number in range(num_previews):
            step = (number + 1) * NUM_STEPS // (num_previews + 1)
            yield StageEvent(progress=StageEvent.Progress(index=index, step=step, num_steps=NUM_STEPS))
            preview = StageEvent.Preview(index=index, step=step, num_steps=NUM_STEPS, image=shown)
            yield StageEvent(preview=preview)
            await asyncio.sleep(pause_s)
    yield StageEvent(image=StageEvent.FinishedImage(index=index, image=picture, seed=seed))
    yield StageEvent(timing=StageEvent.Timing(index=index))


WATCHED_SEED = 1_000


async def begin(http: httpx.AsyncClient, prompt: str, more: dict) -> str:
    seed = WATCHED_SEED if prompt == "watched" else 1
    answer = await http.post("/runs", json={"spec": {"prompt": prompt, "seed": seed, **more}})
    answer.raise_for_status()
    return answer.json()["name"]


async def read(url: str, run: str, reader: Reader) -> None:
    """Reads a run's events to their end, as cheaply as it can."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    stream, writer = await asyncio.open_connection(host, int(port), limit=2**22)
    writer.write(f"GET /{run}/events HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    tail = b""
    try:
        while data := await stream.read(2**18):
            reader.num_bytes += len(data)
            reader.num_events += data.count(b"\ndata: ")
            reader.num_previews += data.count(b'"preview":')
            reader.is_finished = reader.is_finished or b'"finished":' in data
            if b"RUN_STATE_AWAITING_SELECTION" in tail + data:
                reader.waits.set()
            tail = data[-64:]
    finally:
        writer.close()


@asynccontextmanager
async def gateway(stages, folder):
    """`triptych serve gateway`, and where it serves HTTP."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "triptych", "serve", "gateway", "--port", "0", "--http-port", "0", "--exit-with-parent"),
        *("--journal", f"{folder}/journal.db", "--store", f"{folder}/pictures", "--grace", "1"),
        *(part for stage in stages for part in (f"--{stage.stage.worker_name}", stage.address)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        said = json.loads(await process.stdout.readline())
        yield process.pid, f"http://{said['http']}"
    finally:
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    main()
