"""The HTTP API of a gateway that is a process: how it begins, how it ends, and what comes back after it."""

import asyncio
import json
import signal
import sys
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.http.server import serving_http
from services.serving.server import AddressInUse
from tests.gateway.fake_stage import ScriptedGenerator, ScriptedRefiner, ScriptedUpscaler

SKETCHES = {"prompt": "a red house", "seed": "100", "generate": {"count": 2}}


@pytest.fixture
async def stages():
    running = [ScriptedGenerator(), ScriptedRefiner(), ScriptedUpscaler()]
    for stage in running:
        await stage.start()
    yield running
    for stage in running:
        await stage.kill()


@asynccontextmanager
async def gateway(stages, folder):
    """`triptych serve gateway` with HTTP, and a client of it; its log is in the folder."""
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "triptych", "serve", "gateway", "--port", "0", "--grace", "5"),
            *(
                "--journal",
                str(folder / "journal.db"),
                "--store",
                str(folder / "pictures"),
                "--http-port",
                "0",
            ),
            *(part for stage in stages for part in (f"--{stage.stage.worker_name}", stage.address)),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            process.announced = announced = json.loads(await process.stdout.readline())
            async with httpx.AsyncClient(base_url=f"http://{announced['http']}", timeout=120) as http:
                yield process, http
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_a_port_in_use_is_an_error_that_explains_what_to_do(web):
    port = int(web.url.rpartition(":")[2])
    with pytest.raises(AddressInUse, match="choose another --http-port"):
        async with serving_http(web.api, port=port):
            pass


async def test_readers_of_events_do_not_hold_its_end_up(stages, tmp_path):
    stages[0].close_gates(0, 1)
    async with gateway(stages, tmp_path) as (process, http):
        location = (await http.post("/runs", json={"spec": SKETCHES})).headers["location"]
        async with http.stream("GET", f"{location}/events") as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
        stages[0].gates[0].set()
        stages[0].gates[1].set()
        assert await process.wait() == 0
    assert not any('"finished"' in line for line in rest)
    assert "Traceback" not in (tmp_path / "gateway.log").read_text()


async def test_a_reader_goes_on_at_the_gateway_that_comes_after(stages, tmp_path):
    stages[0].close_gates(0, 1)
    async with gateway(stages, tmp_path) as (process, http):
        location = (await http.post("/runs", json={"spec": SKETCHES})).headers["location"]
        async with http.stream("GET", f"{location}/events") as answer:
            seen = []
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                if '"preview"' in line:
                    process.kill()
                    break
    for index in (0, 1):
        stages[0].gates[index].set()
    async with gateway(stages, tmp_path) as (process, http):
        answer = await http.get(f"{location}/events", headers={"last-event-id": seen[-1]["sequence"]})
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    rest = [json.loads(one) for one in data]
    assert rest[-1]["finished"]["state"] == "RUN_STATE_SUCCEEDED"
    ready = [event["image_ready"]["image"] for event in seen + rest if "image_ready" in event]
    assert sorted(image["index"] for image in ready) == [0, 1]
    sequences = [int(event["sequence"]) for event in seen + rest]
    assert sequences == sorted(set(sequences))


async def test_health_reports_pictures_that_the_store_lacks(stages, tmp_path):
    async with gateway(stages, tmp_path) as (process, http):
        location = (await http.post("/runs", json={"spec": SKETCHES})).headers["location"]
        run = (await http.get(f"{location}/events")).text
        assert "RUN_STATE_SUCCEEDED" in run
        process.send_signal(signal.SIGTERM)
        await process.wait()
    for picture in (tmp_path / "pictures").glob("??/*"):
        picture.unlink()
    async with gateway(stages, tmp_path) as (process, http):
        request = health_pb2.HealthCheckRequest(service="triptych.storage")
        async with grpc.aio.insecure_channel(process.announced["address"]) as channel:
            async for answer in health_pb2_grpc.HealthStub(channel).Watch(request):
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
        storage = (await http.get("/health")).json()["storage"]
        assert storage == {"complete": False, "problem": "2 pictures of 1 runs are missing in the store"}
        assert (await http.get(location)).json()["state"] == "RUN_STATE_SUCCEEDED"
    assert f"{location[1:]} lacks 2 of its 2 pictures" in (tmp_path / "gateway.log").read_text()
