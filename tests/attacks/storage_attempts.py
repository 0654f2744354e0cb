"""What is tried on journal, store, disk and clock of a running gateway: it must say so within seconds, and lose nothing."""

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.attacks.attempts import DEADLINE_S, Attempt
from tests.attacks.victim import Victim
from triptych.v1.pipeline_pb2 import CreateRunRequest, ListRunsRequest, RunSpec
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

NOTICED_WITHIN_S = 15.0

Change = Callable[[Path], None]


def checkpoint(path: Path) -> None:
    """Has everything in the file itself; otherwise the WAL would make up for what is done to it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def damage(path: Path) -> None:
    checkpoint(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 16_384)


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    path.rename(path.with_name("old"))
    copy.rename(path)


STORAGE: dict[str, tuple[str, Change]] = {
    "the journal is removed": ("journal.db", Path.unlink),
    "the journal is replaced by its copy": ("journal.db", replace_by_copy),
    "the journal is damaged": ("journal.db", damage),
    "the journal is emptied": ("journal.db", lambda path: (checkpoint(path), os.truncate(path, 0))),
    "the journal is a folder": ("journal.db", lambda path: (path.unlink(), path.mkdir())),
    "the store is removed": ("pictures", shutil.rmtree),
    "the store is replaced by its copy": ("pictures", replace_by_copy),
    "the store is a file": ("pictures", lambda path: (shutil.rmtree(path), path.touch())),
    "the store is a link to nowhere": ("pictures", lambda path: (shutil.rmtree(path), path.symlink_to("nowhere"))),
}  # fmt: skip


def storage_attempts() -> Iterator[Attempt]:
    """Each needs a gateway of its own."""
    for name, (what, change) in STORAGE.items():
        yield Attempt(name, _lost(what, change))


def clock_attempts() -> Iterator[Attempt]:
    """Deadlines and times that no clock has; on the gateway of all others."""
    for timeout in ("0n", "1n", "99999999H", "-1S", "S", "1.5S", "999999999999S", "1X"):
        yield Attempt(f"grpc-timeout {timeout}", _grpc_timeout(timeout))
    for path in ("tokens.json", "journal.db"):
        for when in (0, 1, 2**31, 2**33):
            yield Attempt(f"{path} was changed at {when}", _file_time(path, when))
    for header in ("if-modified-since", "if-unmodified-since", "date", "last-event-id", "retry-after"):
        for value in (
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Fri, 31 Dec 99999 23:59:59 GMT",
            "-1",
            "9" * 400,
            "\xff",
        ):
            yield Attempt(f"http {header}: {value[:30]!r}", _header(header, value))


def _lost(what: str, change: Change) -> Callable[[Victim], Awaitable[str]]:
    async def attack(victim: Victim) -> str:
        await asyncio.to_thread(change, victim.folder / what)
        began = time.monotonic()
        async with grpc.aio.insecure_channel(victim.address) as channel, httpx.AsyncClient() as http:
            checks = health_pb2_grpc.HealthStub(channel)
            while True:
                answer = await checks.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
                web = (await http.get(f"http://{victim.http}/health", timeout=DEADLINE_S)).json()
                is_noticed = answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
                if is_noticed and web.get("storage", {}).get("problem"):
                    break
                took = time.monotonic() - began
                assert took < NOTICED_WITHIN_S, f"INTERNAL: not noticed after {took:.1f} s ({web})"
                await asyncio.sleep(0.2)
            took = time.monotonic() - began
            try:
                await PipelineServiceStub(channel).CreateRun(
                    CreateRunRequest(spec=RunSpec(prompt="a red house")),
                    metadata=victim.metadata("attacker"),
                    timeout=DEADLINE_S,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    return f"INTERNAL: {error.code().name} {error.details()}"
                return f"noticed after {took:.1f} s, a run is refused: {error.details()[:60]}"
        return "INTERNAL: a run was accepted that is lost"

    return attack


def _grpc_timeout(value: str) -> Callable[[Victim], Awaitable[str]]:
    async def attack(victim: Victim) -> str:
        async with grpc.aio.insecure_channel(victim.address) as channel:
            try:
                await PipelineServiceStub(channel).ListRuns(
                    ListRunsRequest(),
                    metadata=(
                        *victim.metadata("attacker"),
                        ("x-grpc-timeout", value),
                        ("grpc-previous-rpc-attempts", value),
                    ),
                    timeout=1e-9 if value in ("0n", "1n") else 1e9,
                )
            except grpc.aio.AioRpcError as error:
                return error.code().name
            except ValueError as error:
                return f"not sent: {error}"
        return "an answer"

    return attack


def _file_time(name: str, when: int) -> Callable[[Victim], Awaitable[str]]:
    async def attack(victim: Victim) -> str:
        os.utime(victim.folder / name, (when, when))
        async with httpx.AsyncClient() as http:
            headers = {"authorization": f"Bearer {victim.tokens['attacker']}"}
            answer = await http.get(f"http://{victim.http}/runs", headers=headers, timeout=DEADLINE_S)
        return str(answer.status_code)

    return attack


def _header(name: str, value: str) -> Callable[[Victim], Awaitable[str]]:
    async def attack(victim: Victim) -> str:
        headers = [
            (b"authorization", f"Bearer {victim.tokens['attacker']}".encode()),
            (name.encode(), value.encode("latin-1")),
        ]
        async with httpx.AsyncClient(timeout=DEADLINE_S) as http:
            answers = [
                await http.get(f"http://{victim.http}{path}", headers=headers)
                for path in ("/", "/runs", "/runs/x/events")
            ]
        return ", ".join(str(one.status_code) for one in answers)

    return attack
