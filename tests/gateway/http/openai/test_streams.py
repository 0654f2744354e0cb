"""Streamed generations, read by the unmodified `openai` package: partial images are true previews."""

import asyncio
import base64
import json

import numpy as np
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent

from tests.gateway.fake_stage import SIDE_PX, png
from tests.gateway.http.conftest import web_gateway
from tests.gateway.http.painting import pixels, set_up, unfinished
from triptych.v1.stage_pb2 import StageEvent


async def stream(web, **more):
    events = await web.openai.images.generate(stream=True, **{"prompt": "x", **more})
    return [event async for event in events]


def data_of(event) -> np.ndarray:
    return pixels(base64.b64decode(event.b64_json))


def partials(events, image_index=0):
    wanted = [event for event in events if event.type.endswith("partial_image")]
    return [event for event in wanted if event.image_index == image_index]


async def test_partial_images_differ_and_converge_to_the_finished_one(painter):
    events = await stream(painter, partial_images=3, quality="low", extra_body={"seed": 7})
    *shown, final = [data_of(event) for event in events]
    assert len(shown) == 3
    distances = [float(np.abs(picture - final).mean()) for picture in shown]
    assert distances[0] > distances[1] > distances[2] > 0
    assert np.array_equal(final, pixels(png(7)))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
async def test_as_many_partial_images_come_as_are_asked_for(painter, number):
    events = await stream(painter, partial_images=number)
    assert [event.partial_image_index for event in partials(events)] == list(range(number))
    assert [event.type for event in events] == ["image_generation.partial_image"] * number + [
        "image_generation.completed"
    ]


async def test_partial_images_are_spread_over_all_steps(painter):
    # Twelve steps of the sketch and twelve of the variation: quarters of the way are 6, 12 and 18.
    events = await stream(painter, partial_images=3, extra_body={"seed": 7})
    final = pixels(png(7))
    left = [float(np.abs(data_of(event) - final).mean()) for event in partials(events)]
    half = float(np.abs(pixels(unfinished(7, SIDE_PX, 0.5).data) - final).mean())
    assert left == [half, 0.0, half]


async def test_previews_are_asked_for_only_where_they_are_shown(painter):
    await stream(painter, partial_images=3)
    assert painter.gateway.generator.requests[0].settings.preview_every == 6
    await stream(painter, partial_images=1, quality="low")
    assert painter.gateway.generator.requests[1].settings.preview_every == 6
    await stream(painter, partial_images=0)
    assert painter.gateway.generator.requests[2].settings.preview_every == 0


async def test_a_stage_with_few_steps_has_no_previews_to_make(painter):
    painter.gateway.generator.info.limits.max_num_steps = 200
    await painter.gateway.notice()
    await stream(painter, partial_images=3)
    assert painter.gateway.generator.requests[0].settings.preview_every == 53
    assert painter.gateway.refiner.requests[0].settings.preview_every == 0


async def test_an_enlarged_picture_has_partial_images_of_what_it_is_made_from(painter):
    events = await stream(painter, partial_images=1, extra_body={"stages": ["generate", "upscale"]})
    assert [event.size for event in events] == ["8x8", "32x32"]


async def test_each_of_several_pictures_has_partial_images_of_its_own(painter):
    events = await stream(painter, n=3, partial_images=2, quality="low", extra_body={"seed": 7})
    completed = [event for event in events if event.type.endswith("completed")]
    assert sorted(event.image_index for event in completed) == [0, 1, 2]
    for event in completed:
        final = data_of(event)
        shown = [data_of(one) for one in partials(events, event.image_index)]
        distances = [float(np.abs(picture - final).mean()) for picture in shown]
        assert len(distances) == 2
        assert distances[0] > distances[1]


async def test_partial_images_of_chosen_sketches_are_of_their_variations(painter):
    painter.gateway.refiner.scores = {9: 0.5}
    events = await stream(painter, quality="high", partial_images=2, extra_body={"seed": 7})
    assert len(partials(events)) == 2
    # Picture 0 of the refiner has the run's own seed, whichever sketch it was made from.
    assert np.array_equal(data_of(events[-1]), pixels(png(7)))


async def test_events_have_every_field_that_the_package_declares(painter):
    events = await stream(painter, partial_images=1, output_format="webp")
    for event, kind in zip(events, (ImageGenPartialImageEvent, ImageGenCompletedEvent), strict=True):
        assert type(event) is kind
        kind.model_validate(event.model_dump(), strict=True)
    assert {event.output_format for event in events} == {"webp"}


async def test_the_finished_event_has_seed_score_and_run(painter):
    painter.gateway.refiner.scores = {7: 0.5}
    (completed,) = await stream(painter, extra_body={"seed": 7})
    assert (completed.seed, completed.score) == (7, 0.5)
    assert completed.image.startswith(f"{completed.run}/images/refine-")


async def test_a_synchronous_client_streams_too(painter):
    def ask():
        with openai.OpenAI(base_url=f"{painter.url}/v1", api_key="none") as client:
            return list(client.images.generate(prompt="x", stream=True, partial_images=2))

    events = await asyncio.to_thread(ask)
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 2 + ["completed"]


async def test_a_partial_image_comes_while_the_picture_is_being_made(painter):
    painter.gateway.generator.close_gates(0)
    events = await painter.openai.images.generate(prompt="x", stream=True, partial_images=3, quality="low")
    first = await anext(aiter(events))
    assert first.type == "image_generation.partial_image"
    assert painter.gateway.generator.finished == []
    painter.gateway.generator.gates[0].set()
    assert [event.type async for event in events][-1] == "image_generation.completed"


async def test_a_failure_in_the_middle_is_raised_by_the_package(painter):
    failure = StageEvent.ImageFailure(index=0, reason="DEVICE_OOM", message="no room for it")
    painter.gateway.refiner.failures = {0: failure}
    with pytest.raises(openai.APIError, match="no room for it") as raised:
        await stream(painter, partial_images=1)
    assert raised.value.code == "device_oom"


async def test_a_failure_in_the_middle_is_an_event_with_an_error_at_its_top(painter):
    failure = StageEvent.ImageFailure(index=0, reason="DEVICE_OOM", message="no room for it")
    painter.gateway.refiner.failures = {0: failure}
    answer = await painter.http.post("/v1/images/generations", json={"prompt": "x", "stream": True})
    assert answer.status_code == 200
    name, data = answer.text.strip().splitlines()[-2:]
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "rate_limit_error"


async def test_the_stream_is_chunked_and_kept_alive_by_comments():
    async with web_gateway(heartbeat_s=0.02) as web:
        await set_up(web.gateway)
        web.gateway.generator.close_gates(0)
        body = {"prompt": "x", "stream": True, "quality": "low"}
        async with web.http.stream("POST", "/v1/images/generations", json=body) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            assert "content-length" not in answer.headers
            lines = answer.aiter_lines()
            while (await anext(lines)) != ": still here":
                pass
            web.gateway.generator.gates[0].set()
            rest = [line async for line in lines]
    assert "event: image_generation.completed" in rest


async def test_comments_do_not_disturb_the_package():
    async with web_gateway(heartbeat_s=0.01) as web:
        await set_up(web.gateway)
        web.gateway.generator.close_gates(0)
        events = await web.openai.images.generate(prompt="x", stream=True, partial_images=3, quality="low")
        first = await anext(aiter(events))
        web.gateway.generator.gates[0].set()
        rest = [event.type async for event in events]
    assert first.partial_image_index == 0
    assert rest[-1] == "image_generation.completed"


async def test_a_reader_who_leaves_takes_the_run_along(painter):
    painter.gateway.generator.close_gates(0)
    events = await painter.openai.images.generate(prompt="x", stream=True, partial_images=3, quality="low")
    await anext(aiter(events))
    await events.close()
    await painter.gateway.generator.stopped[0].wait()
    assert painter.gateway.generator.cancelled == [0]


async def test_a_caller_who_stops_waiting_takes_the_run_along(painter):
    painter.gateway.generator.close_gates(0)
    asking = asyncio.create_task(painter.openai.images.generate(prompt="x"))
    await painter.gateway.generator.begun[0].wait()
    asking.cancel()
    await painter.gateway.generator.stopped[0].wait()
    assert painter.gateway.generator.cancelled == [0]


async def test_what_a_stream_cannot_be_is_refused_before_it_begins(painter):
    body = {"prompt": "x", "stream": True, "partial_images": 4}
    answer = await painter.http.post("/v1/images/generations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "partial_images"
