"""What services write to their logs at the most verbose level: nothing that is a caller's own."""

import base64
import json
import secrets
import signal
import subprocess
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from click.testing import CliRunner
from google.protobuf.json_format import MessageToDict

from gateway.access.tokens_command import tokens
from services.upscaler.conversion.random_weights import write_random
from services.weights.model_folder import write_manifest
from tests.gateway.fake_stage import scripted_stages
from tests.gateway.run_fixtures import ready
from tests.triptych.cli.command_line import command, environment
from triptych.client import CallError, Client
from triptych.v1.pipeline_pb2 import RunSpec, RunState

PROMPT = "a quagga plays the theremin under 猫"


@pytest.fixture(scope="module")
def upscaler_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "upscaler"
    write_random("tiny", folder)
    write_manifest(folder, name="random-tiny", stage="upscaler")
    return folder


@contextmanager
def service(folder, name, *arguments):
    """A service that logs all it can to FOLDER/NAME.log, and what it said when it began."""
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command("serve", name, "--port", "0", "--log-level", "debug", *arguments),
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(XDG_DATA_HOME=str(folder)),
            text=True,
        )
        with process:
            try:
                yield json.loads(process.stdout.readline())
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=120) == 0


@pytest.fixture
async def reported(tmp_path, upscaler_model):
    """A gateway and a stage as processes, after calls of every outcome: their logs, and what must not be in them."""
    token = (
        CliRunner().invoke(tokens, ["add", "alice", "--tokens", str(tmp_path / "tokens.json")]).stdout.strip()
    )
    wrong = "triptych_" + secrets.token_urlsafe(32)
    spec = RunSpec(prompt=PROMPT, generate={"count": 2}, upscale={})
    async with scripted_stages(upscalers=0) as stages:
        with ExitStack() as stack:
            upscaler = stack.enter_context(service(tmp_path, "upscaler", "--model", str(upscaler_model)))
            places = [
                *("--generator", stages.generators[0].address),
                *("--refiner", stages.refiners[0].address),
                *("--upscaler", upscaler["address"]),
            ]
            doors = ("--tokens", str(tmp_path / "tokens.json"), "--http-port", "0")
            gateway = stack.enter_context(service(tmp_path, "gateway", *places, *doors))
            async with Client(gateway["address"], token=token) as alice:
                events = [event async for event in alice.stream_run(spec, request_id="once")]
                stages.generators[0].errors = dict.fromkeys((0, 1), ValueError(f"cannot draw {PROMPT}"))
                for bad in (
                    spec,
                    RunSpec(prompt=PROMPT * 100),
                    RunSpec(prompt=PROMPT, init_images=[{"data": PROMPT.encode()}]),
                ):
                    with pytest.raises(CallError):
                        _ = [event async for event in alice.stream_run(bad)]
            async with Client(gateway["address"], token=wrong) as mallory:
                with pytest.raises(CallError):
                    await mallory.list_models()
            body = {"spec": MessageToDict(spec, preserving_proto_field_name=True)}
            for header, content in (
                (f"Bearer {token}", json.dumps(body)),
                (f"Bearer {token}", json.dumps(body)[:-3]),
                (f"Bearer {wrong}", json.dumps(body)),
            ):
                headers = {"authorization": header, "content-type": "application/json"}
                async with httpx.AsyncClient(base_url=f"http://{gateway['http']}", headers=headers) as http:
                    await http.post("/runs", content=content)
                    await http.get("/runs", params={"page_token": PROMPT})
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    pictures = [image.data for image in ready(events)]
    return {path.stem: path.read_text() for path in tmp_path.glob("*.log")}, [token, wrong], pictures


async def test_no_prompt_token_or_picture_is_in_a_log(reported):
    logs, secret_texts, pictures = reported
    assert set(logs) == {"gateway", "upscaler"}
    for name, log in logs.items():
        assert "serving" in log, name
        for text in (PROMPT, "quagga", "theremin", ascii(PROMPT)[1:-1], *secret_texts):
            assert text not in log, name
        for data in pictures:
            assert base64.b64encode(data[8:]).decode()[4:40] not in log, name
            assert repr(data[16:48])[2:-1] not in log, name
