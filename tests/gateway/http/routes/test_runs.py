"""Runs over HTTP: the contract's messages as JSON."""

import asyncio

from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import collect, spec
from triptych.v1.pipeline_pb2 import RunState
from triptych.v1.stage_pb2 import ModelInfo, PromptReading, WordReplacement

SKETCHES = {"prompt": "a red house", "seed": "100", "generate": {"count": 2}}


async def create(web, request_id="", **more):
    return await web.http.post("/runs", json={"request_id": request_id, "spec": {**SKETCHES, **more}})


async def finish(web, name) -> None:
    async for _ in web.gateway.client.watch_run(name):
        pass


async def test_a_run_is_created_and_found(web):
    answer = await create(web)
    run = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/{run['name']}"
    await finish(web, run["name"])
    found = (await web.http.get(f"/{run['name']}")).json()
    assert (found["state"], found["spec"]["seed"]) == ("RUN_STATE_SUCCEEDED", "100")
    assert sorted(image["index"] for image in found["images"]) == [0, 1]


async def test_a_created_run_goes_on_by_itself(web):
    name = (await create(web)).json()["name"]
    await finish(web, name)
    assert sorted(web.gateway.generator.finished) == [0, 1]


async def test_the_same_request_id_gives_the_same_run(web):
    first, second = await create(web, "once"), await create(web, "once")
    assert second.json()["name"] == first.json()["name"]
    other = await create(web, "once", seed="7")
    assert other.status_code == 409
    assert other.json()["error"]["reason"] == "REQUEST_ID_REUSED"


async def test_runs_are_listed_in_pages_newest_first(web):
    names = [(await create(web)).json()["name"] for _ in range(3)]
    first = (await web.http.get("/runs", params={"page_size": 2})).json()
    rest = await web.http.get("/runs", params={"page_token": first["next_page_token"]})
    assert [run["name"] for run in first["runs"] + rest.json()["runs"]] == names[::-1]
    assert rest.json()["next_page_token"] == ""


async def test_a_run_is_cancelled(web):
    web.gateway.generator.close_gates(0, 1)
    name = (await create(web)).json()["name"]
    await web.gateway.generator.begun[1].wait()
    answer = await web.http.post(f"/{name}/cancel", json={})
    assert answer.json()["state"] == "RUN_STATE_CANCELLED"


async def test_runs_that_wait_are_listed_by_state_and_moved(web):
    web.gateway.generator.close_gates(0)
    body = {"request_id": "", "spec": SKETCHES, "in_turn": True}
    names = [(await web.http.post("/runs", json=body)).json()["name"] for _ in range(3)]

    async def waiting():
        runs = (await web.http.get("/runs", params={"states": "RUN_STATE_QUEUED"})).json()["runs"]
        return [run["name"] for run in sorted(runs, key=lambda run: int(run["queue_order"]))]

    assert await waiting() == names[1:]
    moved = await web.http.post(f"/{names[2]}/move", json={"before": names[1]})
    assert moved.json()["name"] == names[2]
    assert await waiting() == [names[2], names[1]]
    refused = await web.http.post(f"/{names[0]}/move", json={})
    assert (refused.status_code, refused.json()["error"]["reason"]) == (400, "RUN_NOT_QUEUED")
    unknown = await web.http.get("/runs", params={"states": "SLEEPING"})
    assert unknown.status_code == 400
    web.gateway.generator.gates[0].set()
    for name in names:
        await finish(web, name)


async def test_an_image_is_cancelled(web):
    web.gateway.generator.close_gates(0, 1)
    name = (await create(web)).json()["name"]
    await web.gateway.generator.begun[1].wait()
    await web.http.post(f"/{name}/cancel", json={"images": [f"{name}/images/generate-1"]})
    await web.gateway.generator.stopped[1].wait()
    web.gateway.generator.gates[0].set()
    await finish(web, name)
    images = (await web.http.get(f"/{name}")).json()["images"]
    assert [image["name"] for image in images] == [f"{name}/images/generate-0"]


async def test_images_are_selected(web):
    name = (await create(web)).json()["name"]
    await finish(web, name)
    selection = {"image": f"{name}/images/generate-1", "refine": {"count": 2}}
    answer = await web.http.post(
        f"/{name}/selections", json={"request_id": "once", "selections": [selection]}
    )
    assert answer.status_code == 200
    await finish(web, name)
    images = (await web.http.get(f"/{name}")).json()["images"]
    assert [image["parent"] for image in images if image["stage"] == "STAGE_REFINE"] == [
        f"{name}/images/generate-1"
    ] * 2


async def test_a_finished_run_is_deleted(web):
    name = (await create(web)).json()["name"]
    await finish(web, name)
    assert (await web.http.delete(f"/{name}")).status_code == 204
    assert (await web.http.get(f"/{name}")).status_code == 404


async def test_a_run_under_way_is_not_deleted(web):
    web.gateway.generator.close_gates(0)
    name = (await create(web)).json()["name"]
    answer = await web.http.delete(f"/{name}")
    assert answer.json()["error"]["reason"] == "RUN_UNDER_WAY"
    web.gateway.generator.gates[0].set()
    await finish(web, name)


async def test_both_APIs_show_the_same_runs(web):
    events = await collect(web.gateway, spec())
    (run,) = (await web.http.get("/runs")).json()["runs"]
    assert run["name"] == events[0].state.run
    assert RunState.Value(run["state"]) == events[-1].finished.state


async def test_the_models_are_listed(web):
    models = (await web.http.get("/models")).json()["models"]
    assert [(one["model"]["stage"], one["num_workers"]) for one in models] == [
        ("STAGE_GENERATE", 1),
        ("STAGE_REFINE", 1),
        ("STAGE_UPSCALE", 1),
    ]


async def test_a_spec_out_of_range_names_the_field(web):
    answer = await create(web, generate={"count": 1000})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "reason": "INVALID_ARGUMENT",
        "message": "spec.generate.count: must be 1 to 64, got 1000",
        "violations": {"spec.generate.count": "must be 1 to 64, got 1000"},
    }


async def test_a_body_that_is_no_request_is_refused(web):
    for content, kind, status, words in [
        (b'{"spec": {"prompmt": "x"}}', "application/json", 400, 'no field named "prompmt"'),
        (b'{"spec": {"seed": "much"}}', "application/json", 400, "seed"),
        (b'{"spec": []}', "application/json", 400, "spec"),
        (b'"x"', "application/json", 400, "must be a JSON object"),
        (b"{", "application/json", 400, "must be JSON"),
        (b"{}", "text/plain", 415, "expected content-type application/json"),
        (b"{}", "application/x-www-form-urlencoded", 415, "expected content-type application/json"),
    ]:
        answer = await web.http.post("/runs", content=content, headers={"content-type": kind})
        assert (content, answer.status_code) == (content, status)
        assert words in answer.json()["error"]["message"]


async def test_what_is_not_there_is_said(web):
    for method, path, status, reason in [
        ("GET", "/runs/none", 404, "NOT_FOUND"),
        ("GET", "/runs/none/events", 404, "NOT_FOUND"),
        ("DELETE", "/runs/none", 404, "NOT_FOUND"),
        ("GET", "/runs?page_size=many", 400, "INVALID_ARGUMENT"),
        ("GET", "/runs?page_token=mine", 400, "INVALID_ARGUMENT"),
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("PUT", "/runs", 405, "METHOD_NOT_ALLOWED"),
    ]:
        answer = await web.http.request(method, path)
        assert (path, answer.status_code, answer.json()["error"]["reason"]) == (path, status, reason)


async def test_a_full_gateway_states_when_to_come_back():
    async with web_gateway(bounds=RunLimits(room=AdmissionLimits(max_running=1, max_queued=0))) as web:
        web.gateway.generator.close_gates(0)
        name = (await create(web)).json()["name"]
        answer = await create(web)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (429, "QUEUE_FULL")
        assert answer.headers["retry-after"] == "5"
        web.gateway.generator.gates[0].set()
        await finish(web, name)


async def test_a_body_that_does_not_come_is_not_waited_for(web):
    web.api.limits = type(web.api.limits)(body_timeout_s=0.05)
    host, _, port = web.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /runs HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    writer.write(head.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_prompt_is_read_before_a_run_is_begun(web):
    web.gateway.generator.info.vocabulary["things"].CopyFrom(ModelInfo.WordList(words=["cat"]))
    replaced = [WordReplacement(word="kitten", replacement="cat", similarity=0.8)]
    web.gateway.generator.readings["a kitten"] = PromptReading(prompt="a cat", replacements=replaced)
    await web.gateway.notice()
    answer = await web.http.post("/prompts/read", json={"prompt": "a kitten"})
    assert answer.json()["reading"]["replacements"][0]["replacement"] == "cat"
    assert (await web.http.post("/prompts/read", json={"prompt": ""})).status_code == 400
