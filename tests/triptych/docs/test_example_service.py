"""examples/service.py as somebody would run it, against a real gateway over scripted stages."""

import asyncio
import importlib.util
import json

import httpx
import pytest

from tests.gateway.fake_stage import pipeline
from tests.triptych.cli.command_line import ROOT

ORDER = {"order": "1", "text": "a red house"}


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("example_service", ROOT / "examples" / "service.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def gateway():
    async with pipeline() as running:
        yield running


@pytest.fixture
async def http(example, gateway):
    """A client of the service."""
    app = example.make_app(gateway.address)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cards") as client,
    ):
        yield client


def events_of(body: str) -> list[tuple[str, dict]]:
    """The server-sent events of a body: their kinds and their data."""
    blocks = [block.split("\n") for block in body.split("\n\n") if block]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


async def test_an_order_is_answered_with_its_best_picture(http, gateway):
    answer = await http.post("/cards", json=ORDER)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    run = await gateway.client.get_run(answer.headers["x-run"])
    (upscaled,) = [image for image in run.images if image.name.endswith("upscale-0")]
    assert answer.content == await gateway.client.download_image(upscaled.name)


async def test_an_order_that_is_sent_twice_is_made_once(http, gateway):
    answers = await asyncio.gather(*(http.post("/cards", json=ORDER) for _ in range(3)))
    assert len({answer.headers["x-run"] for answer in answers}) == 1
    assert len(gateway.generator.requests) == 4


async def test_an_order_with_another_text_is_a_conflict(http):
    await http.post("/cards", json=ORDER)
    answer = await http.post("/cards", json=ORDER | {"text": "a blue car"})
    assert (answer.status_code, answer.json()["reason"]) == (409, "REQUEST_ID_REUSED")


async def test_a_text_that_cannot_be_drawn_names_the_field(http):
    answer = await http.post("/cards", json=ORDER | {"text": ""})
    assert answer.status_code == 400
    assert list(answer.json()["fields"]) == ["spec.prompt"]


async def test_while_nobody_can_make_it_the_caller_is_given_a_time_to_come_back(http, gateway):
    await gateway.refiner.kill()
    await gateway.notice()
    answer = await http.post("/cards", json=ORDER)
    assert (answer.status_code, answer.json()["reason"]) == (503, "NO_WORKER")
    assert int(answer.headers["retry-after"]) > 0


async def test_an_order_that_takes_too_long_is_given_up(http, gateway, example, monkeypatch):
    monkeypatch.setattr(example, "DEADLINE_S", 0.2)
    gateway.generator.close_gates(0)
    answer = await http.post("/cards", json=ORDER)
    assert answer.status_code == 504


async def test_the_making_can_be_streamed(http):
    answer = await http.post("/cards/stream", json=ORDER)
    kinds = [kind for kind, _ in events_of(answer.text)]
    assert kinds[0] == "accepted"
    assert kinds.count("picture") == 9
    assert "preview" in kinds
    kind, last = events_of(answer.text)[-1]
    assert (kind, last["state"]) == ("done", "succeeded")
    assert last["best"].endswith("upscale-0")


async def test_an_error_before_the_stream_begins_is_a_status(http):
    answer = await http.post("/cards/stream", json=ORDER | {"text": ""})
    assert answer.status_code == 400


async def test_a_run_that_fails_on_the_way_is_reported_in_the_stream(http, gateway):
    gateway.generator.errors = {index: RuntimeError("broken") for index in range(4)}
    answer = await http.post("/cards/stream", json=ORDER)
    kind, last = events_of(answer.text)[-1]
    assert kind == "failed"
    assert last["message"]
