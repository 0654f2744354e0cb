"""The gateway's HTTP API with any path, query, header and body."""

import json
from urllib.parse import quote_from_bytes

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, strategies as st

from gateway.http.app import ROUTES
from tests.fuzz.answers import INSIDE
from tests.fuzz.strategies import fuzzed, messages, pictures, texts
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import ready, spec
from triptych.v1 import pipeline_pb2
from triptych.v1.stage_pb2 import INPAINTING_BLENDED

POSTS = sorted({route.path for route in ROUTES if "POST" in (getattr(route, "methods", None) or ())})
GETS = sorted({route.path or "/" for route in ROUTES if "GET" in (getattr(route, "methods", None) or ())})
REQUESTS = {
    "/runs": pipeline_pb2.StreamRunRequest,
    "/runs/{id}/cancel": pipeline_pb2.CancelRunRequest,
    "/runs/{id}/move": pipeline_pb2.MoveRunRequest,
    "/runs/{id}/selections": pipeline_pb2.SelectImagesRequest,
}
# JSON may hold halves of surrogate pairs, which no text can.
strings = st.one_of(texts, st.sampled_from(("\ud800", "a\udfffb")), st.text(max_size=20))
fields = st.sampled_from(
    ("prompt", "spec", "seed", "n", "size", "model", "stream", "partial_images", "response_format", "text", "num_images", "generate",
     "count", "images", "request_id", "user", "quality", "background", "output_format", "selections", "manual", "detach")
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.floats(), strings),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(fields, strings), inner, max_size=6)
    ),
    max_leaves=25,
)
DEEP = (
    "[" * 100_000,
    '{"spec":' * 5_000,
    '{"seed": ' + "9" * 10_000 + "}",
    '{"seed": 1e999999}',
    '"\\ud800"',
    "\ufeff{}",
)


@pytest.fixture
async def served():
    """A gateway with a finished run, and what stands for the parameters of paths."""
    async with web_gateway() as web:
        web.gateway.refiner.info.inpainting = INPAINTING_BLENDED
        await web.gateway.notice()
        image = ready([event async for event in web.gateway.client.stream_run(spec())])[0]
        run, _, name = image.name.removeprefix("runs/").partition("/images/")
        yield web.http, {"{id}": run, "{image}": name, "{sha256}": image.sha256, "{model:path}": "scripted"}


def check(answer):
    """Fails on a bug, and on an error that does not say what is wrong or reveals too much."""
    assert answer.status_code != 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "HEAD":
        reported = answer.json()["error"]
        assert reported["message"]
        assert not INSIDE.search(answer.text), answer.text


async def post(served, path, **body):
    http, values = served
    for name, value in values.items():
        path = path.replace(name, value)
    check(await http.post(path, **body))
    await cancel_what_was_begun(http)


async def cancel_what_was_begun(http):
    for run in (await http.get("/runs?page_size=1000")).json()["runs"]:
        if run["state"] in ("RUN_STATE_QUEUED", "RUN_STATE_RUNNING", "RUN_STATE_AWAITING_SELECTION"):
            await http.post(f"/{run['name']}/cancel", json={})


@pytest.mark.parametrize("path", POSTS)
@fuzzed(10)
@given(body=st.one_of(JSON.map(json.dumps), st.sampled_from(DEEP), st.binary(max_size=100)))
async def test_any_json_is_answered(served, path, body):
    content = body.encode() if isinstance(body, str) else body
    await post(served, path, content=content, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", sorted(REQUESTS))
@fuzzed(10)
@given(data=st.data())
async def test_any_message_as_json_is_answered(served, path, data):
    message = data.draw(messages(REQUESTS[path].DESCRIPTOR, {"prompt": ("a red house",), "model": ("",)}))
    await post(served, path, json=as_json(message))


def as_json(message):
    try:
        return MessageToDict(message, preserving_proto_field_name=True)
    except ValueError:  # an enum or a number that JSON has no word for
        return {}


@pytest.mark.parametrize("path", [path for path in POSTS if path.startswith("/v1/images/")])
@fuzzed(10)
@given(
    values=st.dictionaries(
        fields, st.one_of(st.sampled_from(("1", "2", "512x512", "true", "b64_json")), texts)
    ),
    files=st.lists(st.tuples(st.sampled_from(("image", "image[]", "mask", "prompt")), pictures), max_size=3),
)
async def test_any_form_is_answered(served, path, values, files):
    uploads = [(name, (f"{name}.png", data, "image/png")) for name, data in files] or {"image": b""}
    await post(served, path, data=values, files=uploads)


@pytest.mark.parametrize("path", [path for path in POSTS if path.startswith("/v1/images/")])
@fuzzed(8)
@given(body=st.binary(max_size=300), boundary=st.sampled_from(("x", "", '"', "x; charset=\xff", "-" * 200)))
async def test_any_bytes_of_a_form_are_answered(served, path, body, boundary):
    kind = f"multipart/form-data; boundary={boundary}".encode("latin-1")
    await post(served, path, content=b"--x\r\n" + body, headers={"content-type": kind})


@pytest.mark.parametrize("path", GETS)
@fuzzed(8)
@given(
    values=st.lists(
        st.one_of(st.binary(max_size=30), texts.map(lambda text: text.encode()[:300])), min_size=2, max_size=2
    ),
    query=st.dictionaries(
        st.sampled_from(
            ("page_size", "page_token", "after_sequence", "download", "signature", "expires", "format", "x")
        ),
        st.one_of(
            st.sampled_from((b"1", b"-1", b"9" * 19, b"\xd9\xa3", b"MSAgeA==")), st.binary(max_size=30)
        ),
        max_size=3,
    ),
    last=st.sampled_from((None, "", "1", "-1", "9" * 30, "\xb2", "x")),
)
async def test_any_address_is_answered(served, path, values, query, last):
    http, known = served
    for name, value in zip(known, (values * 2), strict=True):
        path = path.replace(name, quote_from_bytes(value, safe="") or "x")
    asked = "&".join(f"{name}={quote_from_bytes(value, safe='')}" for name, value in query.items())
    headers = {"last-event-id": last.encode("latin-1")} if last is not None else {}
    check(await http.get(f"{path}?{asked}", headers=headers))


@fuzzed(12)
@given(
    query=st.dictionaries(
        st.sampled_from(("after_sequence", "download")),
        st.sampled_from(("1", "-1", "9" * 19, "٣", "../x\r\ny")),
        max_size=2,
    ),
    last=st.sampled_from((None, "0", "5", "9" * 18)),
)
async def test_any_query_about_a_finished_run_is_answered(served, query, last):
    http, known = served
    headers = {"last-event-id": last} if last is not None else {}
    run, image = f"/runs/{known['{id}']}", known["{image}"]
    for path in (f"{run}/events", f"{run}/images/{image}", f"/images/{known['{sha256}']}"):
        check(await http.get(path, params=query, headers=headers))
