"""A line and a count for every request of both APIs, without what callers said in it; alerts that can be looked up."""

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from services.serving.log_format import JsonFormatter
from services.serving.request_log import RequestLog, RequestRecord, trace_id_of
from tests.gateway.fake_stage import pipeline
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import run_finished, spec
from triptych.v1.pipeline_pb2 import CreateRunRequest, GetRunRequest, ListRunsRequest

ROOT = Path(__file__).parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def tokens(tmp_path):
    token, entry = new_token(Caller("alice"))
    write_tokens(tmp_path / "tokens.json", [entry])
    return tmp_path / "tokens.json", token


@pytest.fixture
def lines(caplog):
    """The log so far, as a process with --log-format json writes it."""
    caplog.set_level(logging.INFO, "services.serving.request_log")

    def read():
        return [
            json.loads(JsonFormatter().format(one))
            for one in caplog.records
            if one.name == "services.serving.request_log"
        ]

    return read


async def test_a_call_over_grpc_has_a_line_with_its_caller_and_trace(tokens, lines):
    path, token = tokens
    async with pipeline(tokens=path) as gateway:
        metadata = (("authorization", f"Bearer {token}"), ("traceparent", TRACEPARENT))
        await gateway.stub.ListRuns(ListRunsRequest(), metadata=metadata)
    (line,) = [one for one in lines() if one.get("method", "").endswith("ListRuns")]
    assert (line["event"], line["code"], line["api"]) == ("request", "OK", "grpc")
    assert (line["caller"], line["trace_id"]) == ("alice", TRACE)
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("api", ["grpc", "http"])
async def test_the_trace_of_a_run_goes_on_to_the_stages(lines, api):
    async with web_gateway() as web:
        asked = spec(refine=None, upscale=None)
        if api == "grpc":
            request = CreateRunRequest(spec=asked)
            made = await web.gateway.stub.CreateRun(request, metadata=(("traceparent", TRACEPARENT),))
            name = made.run.name
        else:
            body = {"spec": {"prompt": "a red house", "generate": {"count": 2}}}
            made = await web.http.post("/runs", json=body, headers={"traceparent": TRACEPARENT})
            name = made.json()["name"]
        await run_finished(web.gateway, name)
    stage_calls = [one for one in lines() if one["method"].endswith("/Generate")]
    assert [one["trace_id"] for one in stage_calls] == [TRACE] * 2


async def test_a_refusal_is_a_warning_with_the_address(tokens, lines):
    async with web_gateway(tokens=tokens[0], token="triptych_wrong") as web:
        await web.http.get("/runs")
        with pytest.raises(grpc.aio.AioRpcError):
            await web.gateway.stub.ListRuns(ListRunsRequest())
    refused = [one for one in lines() if one["event"] == "request_refused"]
    assert {(one["api"], one["code"], one["level"]) for one in refused} == {
        ("http", "403", "warning"),
        ("grpc", "UNAUTHENTICATED", "warning"),
    }
    assert all("127.0.0.1" in one["peer"] for one in refused)
    assert "triptych_wrong" not in json.dumps(refused)


async def test_a_run_over_http_has_a_line_by_its_route_and_without_its_prompt(lines):
    async with web_gateway() as web:
        made = await web.http.post("/runs", json={"spec": {"prompt": "a secret house", "generate": {}}})
        await web.http.get(made.headers["location"])
        await web.http.get("/nowhere/a-secret-house")
    methods = {one["method"]: one["code"] for one in lines() if one.get("api") == "http"}
    assert methods == {"POST /runs": "201", "GET /runs/{id}": "200", "(other)": "404"}
    assert "secret" not in json.dumps(lines())


@pytest.mark.parametrize(
    ("method", "code", "num_lines"),
    [
        ("/triptych.v1.GeneratorService/GetModel", "OK", 0),
        ("/grpc.health.v1.Health/Check", "OK", 0),
        ("GET /health", "200", 0),
        ("/triptych.v1.GeneratorService/GetModel", "UNAUTHENTICATED", 1),
        ("/triptych.v1.GeneratorService/Generate", "OK", 1),
        ("GET /healthy", "200", 1),
    ],
)
def test_what_is_asked_many_times_a_minute_has_a_line_only_if_it_is_refused(lines, method, code, num_lines):
    with RequestLog().recording(RequestRecord("grpc", method)) as record:
        record.code = code
    assert len(lines()) == num_lines


def test_requests_are_counted_with_exemplars():
    registry = CollectorRegistry()
    with RequestLog(registry).recording(RequestRecord("grpc", "/m", traceparent=TRACEPARENT)) as record:
        record.code = "OK"
    text = generate_latest(registry).decode()
    assert 'triptych_requests_total{api="grpc",code="OK",method="/m"} 1.0' in text
    assert f'# {{trace_id="{TRACE}"}}' in text


@pytest.mark.parametrize(
    "header", [None, "", "00-x-y-01", TRACEPARENT + "x", f"00-{'0' * 32}-b7ad6b7169203331-01", "ä"]
)
def test_what_is_no_trace_is_none(header):
    assert trace_id_of(header) == ""
    assert trace_id_of(TRACEPARENT) == TRACE


def test_an_error_in_json_keeps_what_it_quotes_to_itself():
    said = " ".join(["a", "secret", "house"])
    try:
        raise ValueError(said)
    except ValueError:
        record = logging.LogRecord("services", logging.ERROR, "", 1, "it failed", (), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]
    assert said not in line["exception"]


def read_rules():
    rules = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def test_every_alert_has_an_entry_that_explains_what_to_do():
    text = (ROOT / "docs/operations/alerts.md").read_text()
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    assert {rule["annotations"]["runbook_url"] for rule in read_rules()} == {
        f"docs/operations/alerts.md#{anchor}" for anchor in anchors
    }
    assert {rule["alert"].lower() for rule in read_rules()} == anchors


def test_the_operator_gets_the_same_rules():
    resource = yaml.safe_load((ROOT / "deploy/kubernetes/monitoring/rules.yaml").read_text())
    assert [rule for group in resource["spec"]["groups"] for rule in group["rules"]] == read_rules()


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool comes with Debian's package prometheus"
)
def test_the_rules_say_what_they_should():
    done = subprocess.run(
        ["promtool", "test", "rules", "deploy/monitoring/alerts_test.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("api", ["grpc", "http"])
async def test_a_refusal_has_a_line_with_who_what_why_and_from_where(tmp_path, lines, api):
    """Of no token, an unknown one, one that has expired, and of another caller's run; without any secret."""
    (alice, kept), (bob, other), (old, expired) = (
        new_token(Caller("alice")),
        new_token(Caller("bob")),
        new_token(Caller("carol"), timedelta(0)),
    )
    write_tokens(tmp_path / "tokens.json", [kept, other, expired])
    unknown = "triptych_" + "x" * 43
    async with web_gateway(tokens=tmp_path / "tokens.json", token=alice) as web:
        made = await web.http.post("/runs", json={"spec": {"prompt": "a red house"}})
        name = made.json()["name"]
        for token in ("", unknown, old, bob):
            header = f"Bearer {token}".strip()
            if api == "http":
                await web.http.get(f"/{name}", headers={"authorization": header})
            else:
                with pytest.raises(grpc.aio.AioRpcError):
                    await web.gateway.stub.GetRun(
                        GetRunRequest(name=name), metadata=(("authorization", header),)
                    )

    refused = [one for one in lines() if one["event"] == "request_refused"]
    assert [one["reason"] for one in refused] == [
        "TOKEN_MISSING",
        "TOKEN_UNKNOWN",
        "TOKEN_EXPIRED",
        "OTHERS_RUN",
    ]
    digest = hashlib.sha256(unknown.encode()).hexdigest()
    assert [one.get("claimed") for one in refused] == [
        None,
        f"unknown token with sha256 {digest[:12]}",
        f"carol, token {expired.token_id}",
        None,
    ]
    assert refused[3]["caller"] == "bob"
    assert refused[3]["run"] == name
    assert all("127.0.0.1" in one["peer"] and one["level"] == "warning" for one in refused)
    assert all("GetRun" in one["method"] or one["method"].startswith("GET /runs/{") for one in refused)
    text = json.dumps(lines())
    assert not any(secret in text for secret in (alice, bob, old, unknown))
