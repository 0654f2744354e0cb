"""Real services as children: however the parent ends, none of them stays behind."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from services.upscaler.conversion.random_weights import write_random
from services.weights.model_folder import write_manifest
from tests.triptych.cli.command_line import Marked, command
from triptych.cli.processes import running_pipeline
from triptych.stages import WORKER_NAMES

# What `triptych up` does, with two services: the upscaler is the stage that starts quickest.
PARENT = """
import sys
from triptych.cli.terminal.signals import run_in_foreground
from triptych.cli.up import keep_running
run_in_foreground(keep_running({"upscaler": ["--port", "0", "--model", sys.argv[1]]}, ["--port", "0"]))
"""


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "upscaler"
    write_random("tiny", folder)
    write_manifest(folder, name="random-tiny", stage="upscaler")
    return folder


@pytest.fixture
def parent(upscaler: Path) -> Iterator[Marked]:
    marked = Marked([sys.executable, "-c", PARENT, str(upscaler)])
    yield marked
    marked.close()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.matrix), signal.SIGKILL])
def test_no_service_outlives_a_parent_that_serves(parent, number):
    parent.read_until("Ready")
    assert len(parent.pids()) == 3
    parent.signal_and_wait_for_all(number)
    assert parent.pids() == []


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix), signal.SIGKILL]
)
def test_no_service_outlives_a_parent_that_is_stopped_at_start_up(parent, number):
    assert parent.process.stderr is not None
    assert parent.process.stderr.readline().startswith("starting upscaler")
    parent.signal_and_wait_for_all(number)
    assert parent.process.wait(120) != 0
    parent.process.communicate()  # its end of the pipes closes when the last child ends
    parent.wait_for_all()


def test_the_end_of_one_service_ends_all_and_explains_which(parent):
    parent.read_until("Ready")
    (gateway,) = [pid for pid in parent.pids() if b"gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(gateway, signal.SIGKILL)
    _, errors = parent.process.communicate(timeout=120)
    assert "the gateway stopped: it was ended by SIGKILL" in errors
    assert parent.pids() == []


def start_error(stages: dict[str, list[str]]) -> str:
    """The message of a pipeline that cannot start."""

    async def start() -> None:
        async with running_pipeline(stages):
            pass

    with pytest.raises(click.ClickException) as raised:
        asyncio.run(start())
    return raised.value.message


def test_a_model_that_is_not_there_is_reported_in_the_childs_own_words():
    message = start_error({"upscaler": ["--port", "0", "--model", "no-such-model"]})
    assert message.startswith(
        "the upscaler did not start: no upscaler model 'no-such-model': expected a folder"
    )
    assert "\n" not in message


def test_a_damaged_model_is_reported_in_the_childs_own_words(upscaler, tmp_path):
    write_random("tiny", tmp_path)
    write_manifest(tmp_path, name="damaged", stage="upscaler")
    weights = tmp_path / "swinir" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    message = start_error({"upscaler": ["--port", "0", "--model", str(tmp_path)]})
    assert message.startswith(f"the upscaler did not start: {weights}: expected sha256")


def test_a_port_in_use_is_reported_in_one_line(gateway, triptych):
    port = gateway.address.rpartition(":")[2]
    done = triptych("serve", "gateway", "--port", port)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        f"Error: cannot listen on 127.0.0.1:{port}: the port is in use"
    )
    assert "Traceback" not in done.stderr


def test_a_worker_that_is_not_there_fails_the_run_in_one_line(triptych):
    services = [
        f"--{stage}={address}" for stage, address in zip(WORKER_NAMES, ["127.0.0.1:1"] * 3, strict=True)
    ]
    alone = Marked(command("serve", "gateway", "--port", "0", *services))
    try:
        assert alone.process.stdout is not None
        address = json.loads(alone.process.stdout.readline())["address"]
        done = triptych("run", "a house", "--gateway", address)
    finally:
        alone.close()
    assert done.returncode == 1
    assert "generat" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


async def test_ports_of_the_environment_are_not_for_children(monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOST", "0.0.0.0")
    monkeypatch.setenv("TRIPTYCH_TOKENS", "nowhere.json")
    async with running_pipeline({}) as pipeline:
        assert pipeline.gateway.address.startswith("127.0.0.1:")
