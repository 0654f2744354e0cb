"""The other caller, as a process of its own: health checks and small calls over both APIs until standard input ends.

Run as `python -m tests.attacks.bystander ADDRESS HTTP TOKEN`; HTTP and TOKEN may be empty. Prints JSON for each line of input.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triptych.v1.pipeline_pb2 import ListRunsRequest
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

EVERY_S = 0.05
TIMEOUT_S = 30


@dataclass
class Served:
    """How the other caller was served: the longest call, how many there were, and those that failed."""

    longest_s: float = 0.0
    longest_call: str = ""
    num_calls: int = 0
    failures: list[str] = field(default_factory=list)


async def observe(address: str, http: str, token: str) -> None:
    """Serves until standard input ends; for each line of it prints how it was since the line before."""
    served = Served()
    tasks = [asyncio.create_task(_health(address, served))]
    if token:
        tasks.append(asyncio.create_task(_list_runs(address, token, served)))
    if http:
        tasks.append(asyncio.create_task(_get_runs(http, token, served)))
    while await asyncio.to_thread(sys.stdin.readline):
        served.failures += [repr(task.exception())[:200] for task in tasks if task.done()]
        sys.stdout.write(json.dumps(asdict(served)) + "\n")
        sys.stdout.flush()
        served.longest_s, served.longest_call, served.num_calls, served.failures = 0.0, "", 0, []
    # What is under way is of no interest any more.
    os._exit(0)


async def _health(address: str, served: Served) -> None:
    async with _channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            call = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            await _timed(served, call, "health check")


async def _list_runs(address: str, token: str, served: Served) -> None:
    async with _channel(address) as channel:
        stub = PipelineServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        while True:
            call = stub.ListRuns(ListRunsRequest(page_size=1), timeout=TIMEOUT_S, metadata=metadata)
            await _timed(served, call, "ListRuns")


async def _get_runs(http: str, token: str, served: Served) -> None:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=f"http://{http}", headers=headers, timeout=TIMEOUT_S) as client:
        while True:
            answer = await _timed(served, client.get("/runs?page_size=1"), "GET /runs")
            if answer is not None and answer.status_code != 200:
                served.failures.append(f"GET /runs answered {answer.status_code}")


async def _timed(served: Served, call, what: str):
    began = time.monotonic()
    try:
        return await call
    except (grpc.aio.AioRpcError, httpx.HTTPError) as error:
        served.failures.append(f"{what}: {_reason(error)}")
        return None
    finally:
        took = time.monotonic() - began
        served.num_calls += 1
        if took > served.longest_s:
            served.longest_s, served.longest_call = took, what
        await asyncio.sleep(EVERY_S)


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:200]
    return repr(error)[:200]


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address)


if __name__ == "__main__":
    asyncio.run(observe(*sys.argv[1:4]))
