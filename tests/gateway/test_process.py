"""The gateway as a process: how it begins, what it prints, how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import grpc
import pytest
from click import UsageError
from click.testing import CliRunner

from gateway.access.certs_command import certs
from gateway.access.tokens_command import tokens
from gateway.command import serve
from services.errors import TriptychError
from services.serving.listen_options import UnsafeAddress
from tests.gateway.fake_stage import scripted_stages
from tests.gateway.run_fixtures import spec
from triptych.client import Client
from triptych.v1.pipeline_pb2 import RunState, StreamRunRequest, WatchRunRequest
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

COMMAND = [sys.executable, "-m", "triptych", "serve", "gateway"]
NOBODY = [
    argument for stage in ("generator", "refiner", "upscaler") for argument in (f"--{stage}", "127.0.0.1:1")
]


@contextmanager
def gateway_process(*arguments, named=NOBODY):
    """A gateway on a free port, and the line that it began with."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--journal", "none", *named, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def refused(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, "--journal", "none", *NOBODY, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    with gateway_process() as (process, announced):
        assert announced["service"] == "gateway"
        host, _, port = announced["address"].rpartition(":")
        socket.create_connection((host, int(port)), timeout=120).close()
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_it_ends_with_its_parent_where_that_is_asked_for():
    with gateway_process("--exit-with-parent") as (process, _):
        process.stdin.close()
        assert process.wait(timeout=120) == 0


def test_a_port_in_use_is_an_error_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "the port is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_of_workers_that_is_none_is_wrong_usage(tmp_path):
    path = tmp_path / "workers.json"
    path.write_text("[]")
    done = refused("--workers-file", str(path))
    assert done.returncode == 2
    assert "expected an object with lists under generator, refiner, upscaler" in done.stderr


def test_a_worker_that_is_no_address_is_wrong_usage():
    done = refused("--generator", "somewhere")
    assert done.returncode == 2
    assert "expected HOST:PORT or dns:NAME:PORT, got 'somewhere'" in done.stderr


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "--tls-cert and --tls-key and --tokens"),
        (["--tokens", "TOKENS"], "--tls-cert and --tls-key,"),
        (["--tls-cert", "CERTS/gateway.crt", "--tls-key", "CERTS/gateway.key"], "--tokens,"),
    ],
)
def test_it_does_not_listen_openly_by_mistake(tmp_path, options, missing):
    with pytest.raises(UnsafeAddress, match=f"refused to listen on 0.0.0.0 without {missing}"):
        begin("--host", "0.0.0.0", *with_doors(tmp_path, options))


def test_its_refusal_is_one_line():
    done = refused("--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_it_listens_for_others_when_it_is_safe(tmp_path):
    options = ["--tokens", "TOKENS", "--tls-cert", "CERTS/gateway.crt", "--tls-key", "CERTS/gateway.key"]
    with gateway_process("--host", "0.0.0.0", *with_doors(tmp_path, options)) as (_, announced):
        assert announced["address"].startswith("0.0.0.0:")


def test_it_listens_for_others_when_it_is_asked_to():
    with gateway_process("--host", "0.0.0.0", "--insecure") as (_, announced):
        assert announced["address"].startswith("0.0.0.0:")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tokens", "nowhere.json"], "cannot read the tokens in nowhere.json: No such file"),
        (["--tls-cert", "CERTS/gateway.crt"], "go together"),
        (["--tls-client-ca", "CERTS/ca.crt"], "needs --tls-cert and --tls-key"),
        (["--stage-cert", "CERTS/gateway-client.crt"], "need --stage-ca"),
        (["--stage-ca", "CERTS/ca.key"], "ca.key has no certificates in PEM"),
    ],
)
def test_files_that_do_not_open_a_port_are_named(tmp_path, options, complaint):
    with pytest.raises((TriptychError, UsageError), match=complaint):
        begin(*with_doors(tmp_path, options))


def begin(*arguments):
    """Begins in this process, for what ends before it listens."""
    CliRunner().invoke(serve, ["--port", "0", *arguments], standalone_mode=False, catch_exceptions=False)


def with_doors(folder, options):
    """The options, with CERTS and TOKENS in them as files that are there."""
    CliRunner().invoke(certs, [str(folder)], catch_exceptions=False)
    CliRunner().invoke(tokens, ["add", "alice", "--tokens", str(folder / "t.json")], catch_exceptions=False)
    return [
        option.replace("CERTS", str(folder)).replace("TOKENS", str(folder / "t.json")) for option in options
    ]


async def test_workers_are_taken_from_a_list_that_changes(tmp_path):
    path = tmp_path / "workers.json"
    path.write_text("{}")
    async with scripted_stages() as stages:
        with gateway_process("--workers-file", str(path), named=[]) as (_, announced):
            async with Client(announced["address"]) as client:
                assert await client.list_models() == []
                path.write_text(json.dumps({"generator": [stages.generators[0].address]}))
                found = []
                while not found:
                    found = await client.list_models()
    assert [(one.model.name, one.num_workers) for one in found] == [("scripted", 1)]


async def test_a_signal_leaves_the_run_of_a_streaming_caller_to_the_next_gateway(tmp_path):
    options = ["--journal", str(tmp_path / "journal.db"), "--store", str(tmp_path / "pictures")]
    options += ["--abandon-grace", "0", "--grace", "0"]
    async with scripted_stages() as stages:
        generator = stages.generators[0]
        generator.close_gates(0)
        named = [*NOBODY, "--generator", generator.address]
        with gateway_process(*options, named=named) as (process, announced):
            async with grpc.aio.insecure_channel(announced["address"]) as channel:
                asked = spec(generate={"count": 1}, refine=None, upscale=None)
                call = PipelineServiceStub(channel).StreamRun(StreamRunRequest(spec=asked))
                name = (await call.read()).event.state.run
                await generator.begun[0].wait()
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 20) == 0
        generator.gates[0].set()
        with gateway_process(*options, named=named) as (_, announced):
            async with grpc.aio.insecure_channel(announced["address"]) as channel:
                watching = PipelineServiceStub(channel).WatchRun(WatchRunRequest(name=name))
                events = [response.event async for response in watching]
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
