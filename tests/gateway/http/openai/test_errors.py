"""What goes wrong on /v1 routes, as the exception classes of the unmodified `openai` package."""

import asyncio

import httpx
import openai
import pytest

from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from gateway.http.openai.fields import FormFields
from gateway.http.openai.models import OPENAI_MODELS, ModelFamily
from gateway.http.openai.request import GENERATION_FIELDS, generation
from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from services.errors import InvalidRequest
from tests.gateway.http.conftest import web_gateway
from tests.gateway.http.painting import set_up
from triptych.v1.stage_pb2 import ModelInfo

FAMILY = ModelFamily(
    "tiny",
    {
        "generate": ModelInfo(name="tiny", image_size=8),
        "refine": ModelInfo(name="tiny", image_size=8),
        "upscale": ModelInfo(name="tiny", scale=4),
    },
)


def read(fields):
    """What a request under the family's own name asks for."""
    form = FormFields(fields)
    form.limit_to(GENERATION_FIELDS)
    return generation(form, FAMILY)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": 7}, "prompt", "must be a text, got 7"),
        ({"n": 0}, "n", "from 1 to 10, got 0"),
        ({"n": 11}, "n", "from 1 to 10, got 11"),
        ({"n": True}, "n", "must be a whole number"),
        ({"seed": -1}, "seed", "from 0 to 18446744073709551615"),
        ({"steps": 0}, "steps", "from 1 to"),
        ({"guidance_scale": "much"}, "guidance_scale", "must be a number"),
        ({"output_format": "gif"}, "output_format", "png, jpeg, webp, got 'gif'"),
        ({"output_compression": 50}, "output_compression", "leave it out for png"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "0 to 100"),
        ({"response_format": "file"}, "response_format", "b64_json, url"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"quality": "max"}, "quality", "auto, low, medium, high"),
        ({"stages": ["refine"]}, "stages", "from generate on"),
        ({"stages": ["generate", "dream"]}, "stages", "generate, refine, upscale"),
        ({"stages": ["generate"], "quality": "high"}, "quality", "give one of them"),
        ({"stages": ["generate"], "steps": 4}, "steps", "of the stage refine"),
        ({"size": 256}, "size", "must be a text"),
        ({"size": "256x256"}, "size", "8x8 and 32x32 pictures"),
        ({"frame_count": 4}, "frame_count", "is not known here"),
        ({"partial_images": 4, "stream": True}, "partial_images", "from 0 to 3"),
        ({"n": 1.5}, "n", "must be a whole number"),
        ({"n": "one"}, "n", "must be a whole number"),
        ({"partial_images": 1}, "partial_images", "set stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "must be b64_json"),
        ({"stream": "perhaps"}, "stream", "true or false"),
    ],
)
def test_a_field_that_cannot_be_served_is_named(fields, param, words):
    with pytest.raises(InvalidRequest) as raised:
        read({"prompt": "x", **fields})
    assert raised.value.field == param
    assert words in raised.value.description


async def test_a_field_that_the_pipeline_refuses_has_the_api_s_name(painter):
    for fields, param, words in [
        ({"prompt": ""}, "prompt", "must say what to draw"),
        ({"prompt": "x" * 3000}, "prompt", "at most 2000 bytes"),
        ({"guidance_scale": -1}, "guidance_scale", "0 to 100,"),
    ]:
        body = {"prompt": "x", "model": "tiny", **fields}
        answer = await painter.http.post("/v1/images/generations", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
        assert words in error["message"]
    assert painter.gateway.generator.requests == []


async def test_a_bad_request_is_a_bad_request_error(painter):
    with pytest.raises(openai.BadRequestError) as raised:
        await painter.openai.images.generate(prompt="x", n=99)
    assert (raised.value.param, raised.value.code) == ("n", "invalid_argument")


async def test_an_unknown_model_is_not_found(painter):
    with pytest.raises(openai.NotFoundError, match="served: tiny") as raised:
        await painter.openai.images.generate(prompt="x", model="midjourney")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


async def test_models_are_listed_and_found(painter):
    listed = [model async for model in painter.openai.models.list()]
    assert [model.id for model in listed] == ["tiny", *OPENAI_MODELS]
    assert {(model.object, model.owned_by) for model in listed} == {("model", "triptych")}
    assert await painter.openai.models.retrieve("tiny") == listed[0]
    with pytest.raises(openai.NotFoundError):
        await painter.openai.models.retrieve("midjourney")


async def test_nobody_who_serves_is_a_server_error(painter):
    await painter.gateway.generator.kill()
    await painter.gateway.notice()
    with pytest.raises(openai.InternalServerError, match="no generator serves") as raised:
        await painter.openai.with_options(max_retries=0).images.generate(prompt="x")
    assert raised.value.status_code == 503


async def test_a_bug_is_opaque(painter, caplog):
    painter.gateway.facade.list_models = None
    answer = await painter.http.post("/v1/images/generations", json={"prompt": "x"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error; see the gateway's log"
    assert "TypeError" in caplog.text


async def test_a_full_gateway_states_when_to_come_back():
    async with web_gateway(bounds=RunLimits(room=AdmissionLimits(max_running=1, max_queued=0))) as web:
        await set_up(web.gateway)
        web.gateway.generator.close_gates(0)
        running = asyncio.create_task(web.openai.images.generate(prompt="x"))
        await web.gateway.generator.begun[0].wait()
        with pytest.raises(openai.RateLimitError) as raised:
            await web.openai.with_options(max_retries=0).images.generate(prompt="y")
        assert raised.value.response.headers["retry-after"] == "5"
        web.gateway.generator.gates[0].set()
        await running


async def test_the_package_comes_back_after_retry_after():
    async with web_gateway(bounds=RunLimits(room=AdmissionLimits(max_running=1, max_queued=0))) as web:
        await set_up(web.gateway)
        web.gateway.generator.close_gates(0)
        running = asyncio.create_task(web.openai.images.generate(prompt="x"))
        await web.gateway.generator.begun[0].wait()
        statuses: list[int] = []

        async def note(response):
            statuses.append(response.status_code)
            web.gateway.generator.gates[0].set()
            await running

        client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
        async with openai.AsyncOpenAI(base_url=f"{web.url}/v1", api_key="x", http_client=client) as patient:
            answer = await patient.images.generate(prompt="y")
    assert answer.data
    assert statuses == [429, 200]


async def test_the_same_idempotency_key_makes_one_run(painter):
    headers = {"Idempotency-Key": "once"}
    first = await painter.openai.images.generate(prompt="x", extra_headers=headers)
    second = await painter.openai.images.generate(prompt="x", extra_headers=headers)
    assert (second.run, second.data[0].b64_json) == (first.run, first.data[0].b64_json)
    assert len(painter.gateway.generator.requests) == 1


async def test_a_run_with_a_key_outlives_a_broken_connection(painter):
    painter.gateway.generator.close_gates(0)
    headers = {"Idempotency-Key": "once"}
    asking = asyncio.create_task(painter.openai.images.generate(prompt="x", extra_headers=headers))
    await painter.gateway.generator.begun[0].wait()
    asking.cancel()
    painter.gateway.generator.gates[0].set()
    again = await painter.openai.images.generate(prompt="x", extra_headers=headers)
    assert again.data
    assert len(painter.gateway.generator.requests) == 1


async def test_an_idempotency_key_for_something_else_is_a_conflict(painter):
    headers = {"Idempotency-Key": "once"}
    await painter.openai.images.generate(prompt="x", extra_headers=headers)
    with pytest.raises(openai.ConflictError) as raised:
        await painter.openai.images.generate(prompt="y", extra_headers=headers)
    # The package would repeat any conflict; a header asks it not to.
    assert raised.value.response.headers["x-should-retry"] == "false"


async def test_an_idempotency_key_has_a_limit(painter):
    with pytest.raises(openai.BadRequestError) as raised:
        await painter.openai.images.generate(prompt="x", extra_headers={"Idempotency-Key": "k" * 200})
    assert raised.value.param == "Idempotency-Key"


async def test_a_body_that_cannot_be_read_is_said_in_openai_s_shape(painter):
    for content, kind, status in [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b"x" * (2**20 + 1), "application/json", 413),
    ]:
        answer = await painter.http.post(
            "/v1/images/generations", content=content, headers={"content-type": kind}
        )
        assert (content[:20], answer.status_code) == (content[:20], status)
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_not_declared_is_bounded_too(painter):
    async def endless():
        for _ in range(40):
            yield b" " * 2**16

    answer = await painter.http.post(
        "/v1/images/generations", content=endless(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("expects", ["", "expect: 100-continue\r\n"])
async def test_an_upload_is_bounded(painter, expects):
    address = painter.url.removeprefix("http://")
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = 36 * 2**20
    headers = f"host: {address}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: {size}"
    writer.write(f"POST /v1/images/edits HTTP/1.1\r\n{headers}\r\n{expects}\r\n".encode())
    # Without Expect, programs send all of it before they read.
    for _ in range(0 if expects else size // 2**20):
        writer.write(bytes(2**20))
        await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_form_with_too_many_fields_is_refused(painter):
    many = {f"f{i}": (None, "x") for i in range(100)}
    answer = await painter.http.post("/v1/images/edits", files=many)
    assert answer.status_code == 400
    assert "Too many fields" in answer.json()["error"]["message"]


async def test_an_unknown_route_is_not_found_in_openai_s_shape(painter):
    with pytest.raises(openai.NotFoundError):
        await painter.openai.chat.completions.create(model="x", messages=[])


async def test_without_its_token_nobody_is_served(tmp_path):
    token, entry = new_token(Caller("ann"))
    write_tokens(tmp_path / "tokens.json", [entry])
    async with web_gateway(tokens=tmp_path / "tokens.json", token=token) as web:
        await set_up(web.gateway)
        assert (await web.openai.images.generate(prompt="x")).data
        for key in ("wrong", "triptych_" + "x" * 43):
            async with openai.AsyncOpenAI(base_url=f"{web.url}/v1", api_key=key) as stranger:
                with pytest.raises(openai.AuthenticationError):
                    await stranger.images.generate(prompt="x")
        async with httpx.AsyncClient() as nobody:
            assert (await nobody.get(f"{web.url}/v1/models")).status_code == 401
            # As a client of Azure sends it.
            azure = f"{web.url}/openai/deployments/d/images/generations"
            answer = await nobody.post(azure, json={"prompt": "x"}, headers={"api-key": token})
            assert answer.status_code == 200
