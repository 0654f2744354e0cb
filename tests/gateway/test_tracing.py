"""Traces of a gateway over scripted stages: both APIs, cancellations, retries, restarts; and that it can be off."""

import asyncio
import gzip
import http.server
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from services.serving.tracing import setup, spans
from services.serving.tracing.log_fields import log_fields, logging_with
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import ALL, run_finished, spec
from tests.gateway.selecting import automatic_run, select, selection
from triptych.v1.pipeline_pb2 import CancelRunRequest, CreateRunRequest, StreamRunRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SKETCHES = {"refine": None, "upscale": None}


@pytest.fixture
def exported():
    """Spans of this process from here on; the gateway and its scripted stages are all in it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans.install(provider.get_tracer("test"))
    yield exporter
    spans.install(None)
    provider.shutdown()


def named(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


def trace_of(span):
    return f"{span.context.trace_id:032x}"


async def test_a_run_over_http_is_part_of_its_callers_trace(exported):
    async with web_gateway() as web:
        body = {"spec": {"prompt": "a red house", "generate": {"count": 2}}}
        made = await web.http.post("/runs", json=body, headers={"traceparent": TRACEPARENT})
        await run_finished(web.gateway, made.json()["name"])
    (post,) = named(exported, "POST /runs")
    assert (post.kind, trace_of(post), f"{post.parent.span_id:016x}") == (
        SpanKind.SERVER,
        TRACE,
        TRACEPARENT[36:52],
    )
    assert dict(post.attributes) == {
        "client.address": "127.0.0.1",
        "http.request.method": "POST",
        "http.route": "/runs",
        "http.response.status_code": 201,
    }
    calls = named(exported, "triptych.v1.GeneratorService/Generate")
    assert [(one.kind, trace_of(one)) for one in calls].count((SpanKind.SERVER, TRACE)) == 2
    assert [(one.kind, trace_of(one)) for one in calls].count((SpanKind.CLIENT, TRACE)) == 2


async def test_a_caller_without_a_trace_begins_one(exported):
    async with pipeline() as gateway:
        run = (await gateway.stub.CreateRun(CreateRunRequest(spec=spec(**SKETCHES)))).run
        await run_finished(gateway, run.name)
    (create,) = named(exported, "triptych.v1.PipelineService/CreateRun")
    (made,) = named(exported, "run")
    assert create.parent is None
    assert made.parent.span_id == create.context.span_id


async def test_a_trace_that_is_not_sampled_goes_on_unrecorded(exported):
    async with pipeline() as gateway:
        metadata = (("traceparent", TRACEPARENT[:-2] + "00"),)
        request = CreateRunRequest(spec=spec(**SKETCHES))
        await run_finished(gateway, (await gateway.stub.CreateRun(request, metadata=metadata)).run.name)
    assert [one for one in exported.get_finished_spans() if trace_of(one) == TRACE] == []


async def test_a_call_that_its_caller_cancels_ends_its_spans_and_its_work(exported):
    async with pipeline() as gateway:
        gateway.generator.close_gates(0, 1)
        call = gateway.stub.StreamRun(StreamRunRequest(spec=spec(**SKETCHES)))
        await gateway.generator.begun[0].wait()
        await gateway.generator.begun[1].wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
        (run,), _ = await gateway.facade.list_runs(ALL)
        await run_finished(gateway, run.name)
    codes = {
        one.attributes["rpc.response.status_code"]
        for one in named(exported, "triptych.v1.GeneratorService/Generate")
        if one.kind == SpanKind.CLIENT
    }
    assert codes == {"CANCELLED"}
    (made,) = named(exported, "run")
    assert made.attributes["triptych.run.state"] == "cancelled"
    assert all(one.end_time for one in exported.get_finished_spans())


async def test_an_error_is_recorded_by_its_reason_and_without_its_text(exported):
    async with pipeline() as gateway:
        with pytest.raises(grpc.aio.AioRpcError):
            await gateway.stub.CancelRun(CancelRunRequest(name="runs/secret"))
        gateway.generator.errors = {0: ValueError("a secret house")}
        await run_finished(gateway, (await gateway.facade.create_run("", spec(**SKETCHES), ALL)).name)
    (cancel,) = named(exported, "triptych.v1.PipelineService/CancelRun")
    # A caller's mistake is no failure of the server.
    assert cancel.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert cancel.status.status_code == StatusCode.UNSET
    failed = {one.name for one in exported.get_finished_spans() if one.status.status_code == StatusCode.ERROR}
    assert {"triptych.v1.GeneratorService/Generate", "generate_content scripted"} <= failed
    assert "secret house" not in "".join(one.to_json() for one in exported.get_finished_spans())


async def test_a_run_that_waits_for_its_turn_shows_the_queue(exported):
    bounds = RunLimits(AdmissionLimits(max_running=1), abandon_grace_s=0)
    async with pipeline(bounds=bounds) as gateway:
        gateway.generator.close_gates(0)
        first = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
        second = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": 1}), ALL)
        gateway.generator.gates[0].set()
        for run in (first, second):
            await run_finished(gateway, run.name)
    assert [one.attributes["triptych.queue"] for one in named(exported, "queue")].count("runs") == 1


async def test_a_run_that_continues_after_a_restart_links_to_what_was_before(exported, tmp_path):
    bounds = RunLimits(abandon_grace_s=3600)
    async with scripted_stages() as stages:
        async with gateway_over(stages, tmp_path, bounds=bounds) as gateway:
            stages.generators[0].close_gates(0)
            request = CreateRunRequest(spec=spec(**SKETCHES))
            metadata = (("traceparent", TRACEPARENT),)
            name = (await gateway.stub.CreateRun(request, metadata=metadata)).run.name
            await stages.generators[0].begun[0].wait()
            # Its first events are written by now.
            await gateway.facade.get_run(name, ALL)
        stages.generators[0].gates[0].set()
        async with gateway_over(stages, tmp_path, bounds=bounds) as gateway:
            await run_finished(gateway, name)
    before, after = named(exported, "run")
    assert (trace_of(before), after.parent) == (TRACE, None)
    assert [link.context.span_id for link in after.links] == [before.context.span_id]
    assert trace_of(after) != TRACE


async def test_more_work_on_a_run_links_to_the_work_before(exported):
    async with pipeline() as gateway:
        name = await automatic_run(gateway, **SKETCHES)
        await select(gateway, name, selection(f"{name}/images/generate-0", refine={"count": 1}))
    before, after = named(exported, "run")
    assert [link.context.span_id for link in after.links] == [before.context.span_id]


def test_nothing_of_opentelemetry_is_imported_where_tracing_is_off():
    code = "import sys, gateway.command, services.serving.stage_command as s; s.start_tracing('x'); print([m for m in sys.modules if m.startswith('opentelemetry')])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variables", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_the_environment_turns_it_on(monkeypatch, variables, is_wanted):
    for name in (name for name in os.environ if name.startswith("OTEL_")):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert setup.is_wanted() is is_wanted


@pytest.fixture
def collector():
    """Something that takes OTLP over HTTP: its address, and the paths and bodies that it was sent."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, gzip.decompress(body) if self.headers["content-encoding"] else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_spans_arrive_at_the_collector_that_the_environment_names(monkeypatch, collector):
    address, received = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    setup.start_tracing("gateway")
    with spans.span("a span"):
        pass
    setup.stop_tracing()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert b"a span" in body
    assert b"triptych-gateway" in body


def test_spans_arrive_over_grpc_which_is_the_default(monkeypatch):
    received = []

    class Collector(TraceServiceServicer):
        def Export(self, request, context):
            received.append((request, dict(context.invocation_metadata())))
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=painters")
    setup.start_tracing("refiner")
    with spans.span("a span"):
        pass
    setup.stop_tracing()
    server.stop(None)
    ((request, metadata),) = received
    (resource,) = request.resource_spans
    assert [one.name for scope in resource.scope_spans for one in scope.spans] == ["a span"]
    assert "triptych-refiner" in str(resource.resource)
    assert metadata["x-tenant"] == "painters"


def test_a_missing_library_is_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    setup.start_tracing("gateway")
    assert "install triptych-server[tracing]" in caplog.text
    assert not spans.is_on()


def test_fields_of_the_log_end_with_their_block():
    with logging_with(run="runs/1", image=""):
        with logging_with(image="generate-0"):
            assert dict(log_fields()) == {"run": "runs/1", "image": "generate-0"}
        assert dict(log_fields()) == {"run": "runs/1"}
    assert not log_fields()


@pytest.mark.parametrize(
    "header", ["", "x", "00-x-y-01", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01"]
)
def test_what_is_no_context_begins_a_trace(exported, header):
    span = spans.start_span("x", parent=header, links=[header])
    span.end()
    (made,) = exported.get_finished_spans()
    assert (made.parent, list(made.links)) == (None, [])
    assert spans.trace_id_of(span.traceparent) == trace_of(made)
