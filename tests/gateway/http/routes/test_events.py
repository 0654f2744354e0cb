"""GET /runs/{id}/events: server-sent events that go on where they broke, and never wait for a slow reader."""

import asyncio
import base64
import json

from google.protobuf.json_format import ParseDict

from gateway.http import server
from tests.gateway.fake_stage import png
from tests.gateway.http.conftest import web_gateway
from tests.gateway.http.painting import set_up
from triptych.v1.pipeline_pb2 import Event

SKETCHES = {"prompt": "a red house", "seed": "100", "generate": {"count": 2}}


async def create(web, **more) -> str:
    return (await web.http.post("/runs", json={"spec": {**SKETCHES, **more}, "detach": True})).json()["name"]


def parse(text: str) -> list[Event]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            event = ParseDict(json.loads(fields["data"]), Event())
            assert int(fields["id"]) == event.sequence
            events.append(event)
    return events


async def read_events(web, name, **more) -> list[Event]:
    answer = await web.http.get(f"/{name}/events", **more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse(answer.text)


async def test_the_events_are_those_of_the_protocol(web):
    name = await create(web)
    seen = await read_events(web, name)
    reported = [event async for event in web.gateway.client.watch_run(name)]
    for event in reported:
        if event.HasField("image_ready"):
            event.image_ready.image.ClearField("data")
    kept = [event for event in seen if not event.HasField("preview")]
    assert kept == [event for event in reported if not event.HasField("preview")]
    assert seen[-1].HasField("finished")


async def test_previews_carry_their_picture_and_finished_pictures_do_not(web):
    web.gateway.generator.close_gates(0, 1)
    name = await create(web)
    async with web.http.stream("GET", f"/{name}/events") as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if '"preview"' in line:
                break
        web.gateway.generator.gates[0].set()
        web.gateway.generator.gates[1].set()
        rest = [line async for line in lines]
    preview = json.loads(line.removeprefix("data: "))["preview"]
    assert base64.b64decode(preview["image"]["data"]) in (png(100), png(101))
    ready = [json.loads(one.removeprefix("data: ")) for one in rest if '"image_ready"' in one]
    assert [set(one["image_ready"]["image"]) & {"data"} for one in ready] == [set(), set()]


async def test_zeros_are_written_out(web):
    name = await create(web)
    text = (await web.http.get(f"/{name}/events")).text
    assert '"image_ready":{"image":{"name":"' + name + '/images/generate-0"' in text
    assert '"index":0' in text


async def test_a_reader_goes_on_after_the_last_event_that_it_had(web):
    name = await create(web)
    events = await read_events(web, name)
    place = events[3].sequence
    rest = await read_events(web, name, headers={"last-event-id": str(place)})
    # Previews of what is finished are gone by then.
    assert rest == [event for event in events if event.sequence > place and not event.HasField("preview")]
    assert await read_events(web, name, params={"after_sequence": place}) == rest


async def test_a_client_that_has_had_all_is_not_to_come_back(web):
    name = await create(web)
    last = (await read_events(web, name))[-1].sequence
    answer = await web.http.get(f"/{name}/events", headers={"last-event-id": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_asking_for_the_headers_alone_does_not_follow_the_run(web):
    web.gateway.generator.close_gates(0, 1)
    name = await create(web)
    answer = await web.http.head(f"/{name}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    web.gateway.generator.gates[0].set()
    web.gateway.generator.gates[1].set()
    await read_events(web, name)


async def test_an_id_that_is_none_is_refused(web):
    name = await create(web)
    answer = await web.http.get(f"/{name}/events", headers={"last-event-id": "last"})
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["violations"]


async def test_a_browser_gets_a_time_to_connect_again(web):
    name = await create(web)
    assert (await web.http.get(f"/{name}/events")).text.startswith("retry: 2000\n\n")


async def test_a_quiet_stream_shows_signs_of_life():
    async with web_gateway(heartbeat_s=0.02) as web:
        web.gateway.generator.close_gates(0, 1)
        name = await create(web)
        async with web.http.stream("GET", f"/{name}/events") as answer:
            lines = answer.aiter_lines()
            while (await anext(lines)) != ": still here":
                pass
            web.gateway.generator.gates[0].set()
            web.gateway.generator.gates[1].set()
            rest = [line async for line in lines]
    assert any('"finished"' in line for line in rest)


async def test_many_readers_have_the_same_events(web):
    web.gateway.generator.close_gates(0, 1)
    name = await create(web)
    reading = [asyncio.create_task(read_events(web, name)) for _ in range(20)]
    await web.gateway.generator.begun[1].wait()
    web.gateway.generator.gates[0].set()
    web.gateway.generator.gates[1].set()
    seen = await asyncio.gather(*reading)
    kept = [[event for event in events if not event.HasField("preview")] for events in seen]
    assert all(events == kept[0] for events in kept)


async def test_the_last_reader_of_a_run_that_lives_for_them_takes_it_along(web):
    web.gateway.generator.close_gates(0, 1)
    answer = await web.http.post("/runs", json={"spec": SKETCHES, "detach": False})
    name = answer.json()["name"]
    async with web.http.stream("GET", f"/{name}/events") as answer:
        async for line in answer.aiter_lines():
            if '"preview"' in line:
                break
    await web.gateway.generator.stopped[0].wait()
    await web.gateway.generator.stopped[1].wait()
    assert sorted(web.gateway.generator.cancelled) == [0, 1]


async def test_a_reader_who_leaves_a_detached_run_changes_nothing(web):
    web.gateway.generator.close_gates(0, 1)
    name = await create(web)
    async with web.http.stream("GET", f"/{name}/events") as answer:
        await anext(answer.aiter_lines())
    web.gateway.generator.gates[0].set()
    web.gateway.generator.gates[1].set()
    assert (await read_events(web, name))[-1].finished.state


async def test_the_streams_end_when_the_gateway_stops(web):
    web.gateway.generator.close_gates(0, 1)
    name = await create(web)
    async with web.http.stream("GET", f"/{name}/events") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        web.api.closing.set()
        async for _ in lines:
            pass
    assert answer.is_closed


async def test_a_reader_who_takes_nothing_is_released(monkeypatch):
    monkeypatch.setattr(server, "TAKE_TIMEOUT_MS", 500)
    async with web_gateway() as web:
        web.gateway.generator.close_gates(*range(8))
        # More than the buffers between us hold.
        web.gateway.generator.preview_bytes = 2 * 2**20
        spec = {**SKETCHES, "generate": {"count": 8}}
        name = (await web.http.post("/runs", json={"spec": spec, "detach": False})).json()["name"]
        host, _, port = web.url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(f"GET /{name}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await writer.drain()
        # The run lives for this one reader.
        for index in range(8):
            await web.gateway.generator.stopped[index].wait()
        writer.close()
    assert sorted(web.gateway.generator.cancelled) == list(range(8))


async def test_a_reader_who_takes_nothing_holds_nobody_up():
    async with web_gateway() as web:
        await set_up(web.gateway)
        web.gateway.generator.num_previews = 100
        name = await create(web)
        host, _, port = web.url.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1)
        writer.write(f"GET /{name}/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await writer.drain()
        assert (await read_events(web, name))[-1].HasField("finished")
        writer.close()
