"""What is tried with disks that are full: of the journal, the store and the log of a gateway, and of a command.

What is refused, and what works, is what docs/operations/storage.md states. Disks need the right to mount; without it, the
gateway's attempts are left out.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.images.codec import encode_png
from tests.attacks.victim import MIB, Victim, gateway_victim
from tests.faults.disks import SmallDisk, small_disk, why_no_small_disk
from tests.faults.processes import WORKERS, Process, stage_command
from tests.faults.run_observer import Caller, spec
from tests.faults.stage_process import picture_of
from triptych.client import read_details
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    CreateRunRequest,
    DeleteRunRequest,
    DownloadImageRequest,
    GetRunRequest,
    ListRunsRequest,
    RunSpec,
    RunState,
    SelectImagesRequest,
    WatchRunRequest,
)
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

DISK_BYTES = 8 * MIB
DEADLINE_S = 60.0


@dataclass(frozen=True)
class DiskAttempt:
    """`attack` returns the reasons of what was refused, by what was asked; `expected` is what the docs say."""

    name: str
    place: str
    expected: dict[str, str]

    async def run(self, folder: Path) -> tuple[str, list[str]]:
        if self.place != "log" and (problem := why_no_small_disk(folder)):
            return f"left out: {problem}", []
        async with _on_disk(folder, self.place) as (victim, disk):
            seen = await _fill_and_ask(victim, disk)
            lines = victim.log.read_text()
        problems = [
            f"{what} is answered {seen[what]}, not {said}"
            for what, said in self.expected.items()
            if seen[what] != said
        ]
        problems += ["a traceback"] if "Traceback" in lines else []
        return ", ".join(f"{what} {said}" for what, said in seen.items()), problems


ASKED = (
    "health",
    "list",
    "get",
    "events",
    "picture",
    "run of a picture",
    "run",
    "select",
    "cancel",
    "delete",
)
ALL_WORKS = dict.fromkeys((*ASKED, "later run"), "works")


def disk_attempts() -> Iterator[DiskAttempt]:
    yield DiskAttempt(
        "the journal's disk is full",
        "journal",
        ALL_WORKS
        | dict.fromkeys(("run", "run of a picture", "select", "cancel", "delete"), "JOURNAL_FAILED"),
    )
    yield DiskAttempt("the store's disk is full", "store", ALL_WORKS | {"run of a picture": "STORE_FULL"})
    yield DiskAttempt("the log's disk is full", "log", ALL_WORKS)


@asynccontextmanager
async def _on_disk(folder: Path, place: str) -> AsyncIterator[tuple[Victim, SmallDisk | None]]:
    """A gateway with workers that only count, and one of its files on a disk of its own."""
    async with AsyncExitStack() as stack:
        disk = None if place == "log" else stack.enter_context(small_disk(folder / "disk", DISK_BYTES))
        prefix = disk.prefix if disk else ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
        where = {"journal": folder / "journal.db", "store": folder / "pictures"}
        if disk:
            where[place] = disk.path / where[place].name
        arguments = [part for name, path in where.items() for part in (f"--{name}", str(path))]
        for stage in WORKERS:
            worker = Process(stage, stage_command(stage, port=0), log=folder / f"{stage}.log")
            stack.push_async_callback(worker.close)
            await worker.start()
            arguments += [f"--{stage}", worker.address]
        victim = await stack.enter_async_context(gateway_victim(folder, *arguments, prefix=prefix))
        caller = await stack.enter_async_context(Caller(victim.address, victim.tokens["attacker"]))
        await caller.sees_workers(1)
        yield victim, disk


async def _fill_and_ask(victim: Victim, disk: SmallDisk | None) -> dict[str, str]:
    options = {"metadata": victim.metadata("attacker"), "timeout": DEADLINE_S}
    async with grpc.aio.insecure_channel(victim.address) as channel, httpx.AsyncClient() as http:
        stub = PipelineServiceStub(channel)

        async def make(asked: RunSpec | None = None) -> str:
            request = CreateRunRequest(spec=asked or spec(images=1))
            return (await stub.CreateRun(request, **options)).run.name

        async def finish(name: str) -> None:
            watch = stub.WatchRun(WatchRunRequest(name=name), **options)
            async for response in watch:
                if response.event.HasField("finished"):
                    assert response.event.finished.state == RunState.RUN_STATE_SUCCEEDED, response.event

        async def wait_for_choice() -> str:
            asked = spec(images=1)
            asked.manual.SetInParent()
            name = await make(asked)
            async for response in stub.WatchRun(WatchRunRequest(name=name), **options):
                if response.event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
                    break
            return name

        async def make_and_finish() -> None:
            await finish(await make())

        done, other = await make(), await make()
        await finish(done)
        await finish(other)
        image = (await stub.GetRun(GetRunRequest(name=done), **options)).run.images[0]
        waiting = [await wait_for_choice() for _ in range(2)]
        if disk:
            disk.fill()

        async def health() -> None:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, "NOT_SERVING"
            assert (await http.get(f"http://{victim.http}/health", timeout=DEADLINE_S)).status_code == 200

        async def download() -> None:
            async for _ in stub.DownloadImage(DownloadImageRequest(name=image.name), **options):
                pass

        of_picture = spec(images=1)
        of_picture.ClearField("generate")
        # Larger than what the disk rounds up to.
        of_picture.init_images.add(data=encode_png(picture_of("attack", 1, b"", 256)))
        selection = SelectImagesRequest(name=waiting[0])
        selection.selections.add(image=f"{waiting[0]}/images/generate-0").refine.SetInParent()
        asked: dict[str, Callable[[], Awaitable[object]]] = {
            "health": health,
            "list": lambda: stub.ListRuns(ListRunsRequest(), **options),
            "get": lambda: stub.GetRun(GetRunRequest(name=done), **options),
            "events": lambda: finish(done),
            "picture": download,
            "run of a picture": lambda: make(of_picture),
            "run": make,
            "select": lambda: stub.SelectImages(selection, **options),
            "cancel": lambda: stub.CancelRun(CancelRunRequest(name=waiting[1]), **options),
            "delete": lambda: stub.DeleteRun(DeleteRunRequest(name=other), **options),
        }
        seen = {what: await _ended(ask()) for what, ask in asked.items()}
        if disk:
            disk.free()
        seen["later run"] = await _ended(make_and_finish())
    return seen


async def _ended(asking: Awaitable[object]) -> str:
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        details = read_details(error)
        return details.reason if details and details.reason else error.code().name
    except AssertionError as error:
        return str(error)[:100]
    return "works"
