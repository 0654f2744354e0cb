"""A run over real processes as its operator sees it: one trace, and a JSON log that reads as a story."""

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack

import grpc
import pytest

from tests.faults.processes import Process, free_port, gateway_command, stage_command
from triptych.spec import make_spec
from triptych.v1.pipeline_pb2 import StreamRunRequest
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PROMPT = "a secret house"
JSON_LOG = {"log_format": "json", "log_level": "info"}


class Observed:
    """What is left of the run: the spans of each process, the lines of each log, and where the workers were."""

    def __init__(self, folder, workers, run):
        self.spans = [
            span | {"service": span["resource"]["attributes"]["service.name"]}
            for path in sorted(folder.glob("*.spans"))
            for span in json.loads(path.read_text())
        ]
        self.lines = {
            path.stem: [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
            for path in folder.glob("*.log")
        }
        self.generators, (self.refiner, self.upscaler), self.run = workers[:2], workers[2:], run


async def observe(folder) -> Observed:
    """A run of two sketches and what follows; the first generator is killed in the middle of one."""
    async with AsyncExitStack() as stack:

        async def start(name: str, command: list[str]) -> Process:
            traced = [sys.executable, "-m", "tests.gateway.traced_process", str(folder / f"{name}.spans")]
            process = Process(name, command, prefix=traced, log=folder / f"{name}.log")
            stack.push_async_callback(process.close)
            await process.start()
            return process

        names = {
            "killed": "generator",
            "generator": "generator",
            "refiner": "refiner",
            "upscaler": "upscaler",
        }
        killed, generator, refiner, upscaler = stages = await asyncio.gather(
            *(
                start(name, stage_command(stage, port=free_port(), **JSON_LOG))
                for name, stage in names.items()
            )
        )
        addresses = {
            "generator": [killed.address, generator.address],
            "refiner": [refiner.address],
            "upscaler": [upscaler.address],
        }
        gateway = await start(
            "gateway",
            gateway_command(
                addresses,
                journal=str(folder / "journal.db"),
                store=str(folder / "pictures"),
                port=free_port(),
                options=["--log-format", "json"],
            ),
        )
        await killed.order(hold_at=2)
        request = StreamRunRequest(
            spec=make_spec(PROMPT, seed=1, candidates=2, refine_top=1, variations=1, upscale_top=1)
        )
        async with grpc.aio.insecure_channel(gateway.address) as channel:
            call = PipelineServiceStub(channel).StreamRun(
                request, metadata=(("traceparent", f"00-{TRACE}-{CALLER}-01"),)
            )
            events = asyncio.create_task(_collect(call))
            await killed.heard("holding")
            await killed.kill()
            run = (await events)[0].event.state.run
        for process in (gateway, *stages[1:]):
            process.send(signal.SIGTERM)
            assert await process.ended() == 0
        return Observed(folder, [stage.address for stage in stages], run)


async def _collect(call):
    return [response async for response in call]


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    return asyncio.run(observe(tmp_path_factory.mktemp("observed")))


def test_one_trace_goes_through_four_processes(observed):
    ours = [span for span in observed.spans if span["context"]["trace_id"] == f"0x{TRACE}"]
    assert {span["service"] for span in ours} == {
        "triptych-gateway",
        "triptych-generator",
        "triptych-refiner",
        "triptych-upscaler",
    }
    known = {span["context"]["span_id"] for span in ours} | {f"0x{CALLER}"}
    assert {span["parent_id"] for span in ours} <= known
    (root,) = [span for span in ours if span["parent_id"] == f"0x{CALLER}"]
    assert (root["name"], root["kind"]) == ("triptych.v1.PipelineService/StreamRun", "SpanKind.SERVER")


def test_the_spans_show_the_way_of_every_picture(observed):
    names = {(span["service"].removeprefix("triptych-"), span["name"]) for span in observed.spans}
    assert {
        ("gateway", "run"),
        ("gateway", "generate_content counting"),
        ("gateway", "triptych.v1.GeneratorService/Generate"),
        ("gateway", "store put"),
        ("gateway", "store get"),
        ("gateway", "journal add run"),
        ("gateway", "journal commit"),
        *(
            (stage, part)
            for stage in ("generator", "refiner", "upscaler")
            for part in ("queue", "batch", "encode")
        ),
    } <= names
    by_id = {span["context"]["span_id"]: span for span in observed.spans}
    (batch,) = [
        one for one in observed.spans if (one["service"], one["name"]) == ("triptych-refiner", "batch")
    ]
    way = [batch]
    while way[-1]["parent_id"] in by_id:
        way.append(by_id[way[-1]["parent_id"]])
    assert [one["name"] for one in way] == [
        "batch",
        "triptych.v1.RefinerService/Refine",
        "triptych.v1.RefinerService/Refine",
        "generate_content counting",
        "run",
        "triptych.v1.PipelineService/StreamRun",
    ]
    server, client = way[1]["attributes"], way[2]["attributes"]
    for attributes in (server, client):
        assert attributes["rpc.system.name"] == "grpc"
        assert attributes["rpc.method"] == "triptych.v1.RefinerService/Refine"
        assert attributes["rpc.response.status_code"] == "OK"
    assert client["server.address"] == "127.0.0.1"
    assert way[3]["attributes"]["gen_ai.output.type"] == "image"
    assert way[4]["attributes"]["triptych.run"] == observed.run
    assert way[4]["attributes"]["triptych.run.state"] == "succeeded"


def test_the_call_to_the_killed_worker_has_failed_and_no_other(observed):
    failed = [span for span in observed.spans if span["status"]["status_code"] == "ERROR"]
    assert {(one["name"], one["attributes"]["error.type"]) for one in failed} == {
        ("triptych.v1.GeneratorService/Generate", "WORKER_LOST")
    }


def test_prompts_are_in_no_span_and_no_line(observed):
    assert "secret" not in json.dumps(observed.spans)
    assert "secret" not in json.dumps(observed.lines)


def test_the_log_of_the_gateway_reads_as_a_story(observed):
    killed, other = observed.generators
    lines = [line for line in observed.lines["gateway"] if line.get("run") == observed.run]
    assert all(line["trace_id"] == TRACE for line in lines)
    assert all(line["caller"] for line in lines)
    assert all(line["level"] in ("info", "warning") and line["time"].endswith("Z") for line in lines)
    story = [(line.get("event"), line.get("image", ""), line.get("worker", "")) for line in lines]
    lost = next(image for event, image, worker in story if (event, worker) == ("attempt_started", killed))
    chapters = [
        ("run_accepted", "", ""),
        ("run_started", "", ""),
        ("attempt_started", lost, killed),
        ("worker_unavailable", lost, killed),
        ("attempt_failed", lost, ""),
        ("attempt_started", lost, other),
        ("image_ready", lost, other),
        ("image_ready", "refine-0", observed.refiner),
        ("image_ready", "upscale-0", observed.upscaler),
        ("run_ended", "", ""),
    ]
    places = [story.index(chapter) for chapter in chapters]
    assert places == sorted(places), story
    ended = lines[places[-1]]
    assert (ended["state"], ended["message"]) == ("succeeded", f"{observed.run} ended: succeeded")


def test_the_log_of_a_stage_names_the_run_and_the_image(observed):
    for stage, method in (("refiner", "Refine"), ("upscaler", "Upscale")):
        (line,) = [one for one in observed.lines[stage] if one.get("method", "").endswith(f"/{method}")]
        assert (line["run"], line["trace_id"]) == (observed.run, TRACE)
        assert line["image"] == f"{method.lower()}-0"


def test_every_process_begins_with_what_it_is(observed):
    (gateway,) = [one for one in observed.lines["gateway"] if one.get("event") == "started"]
    assert gateway["version"]
    assert gateway["journal"].endswith("journal.db")
    assert gateway["store"].endswith("pictures")
    assert gateway["options"]["max_runs"] == 64
    assert gateway["options"]["generator"] == ", ".join(observed.generators)
    (refiner,) = [one for one in observed.lines["refiner"] if one.get("event") == "started"]
    assert (refiner["model"], refiner["options"]["slots"]) == ("counting", 4)
