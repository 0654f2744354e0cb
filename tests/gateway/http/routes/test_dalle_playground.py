"""POST /dalle and the health check, byte for byte as dalle-playground's page needs them from its back end.

What its page sends: `fetch(url + "/dalle", {method: "POST", headers: {"Bypass-Tunnel-Reminder": "go", mode: "no-cors"},
body: JSON.stringify({text, num_images})})`, a body whose type the browser calls text; and the same headers with GET.
"""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.gateway.fake_stage import png
from tests.gateway.http.painting import pixels

PAGE = "http://localhost:3000"
# Of a browser that may send the headers above from another site.
BROWSER = {"origin": PAGE, "accept": "*/*", "bypass-tunnel-reminder": "go", "mode": "no-cors"}


async def ask(web, text="a red house", number=2, path="/dalle"):
    body = json.dumps({"text": text, "num_images": number}, separators=(",", ":"))
    headers = {**BROWSER, "content-type": "text/plain;charset=UTF-8"}
    return await web.http.post(path, content=body, headers=headers)


@pytest.mark.parametrize("path", ["/dalle", "/generate"])
async def test_the_page_gets_the_pictures_that_it_can_show(web, path):
    answer = await ask(web, path=path)
    assert answer.status_code == 200
    reported = answer.json()
    assert reported["generatedImgsFormat"] == "jpeg"
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(one, validate=True))) for one in reported["generatedImgs"]
    ]
    assert [picture.format for picture in pictures] == ["JPEG", "JPEG"]


async def test_the_answer_is_written_as_flask_writes_it(web):
    answer = await ask(web, number=1)
    (picture,) = answer.json()["generatedImgs"]
    expected = '{"generatedImgs":["' + picture + '"],"generatedImgsFormat":"jpeg"}\n'
    assert answer.content == expected.encode()
    assert answer.headers["content-type"] == "application/json"


async def test_the_pictures_are_sketches_of_the_text(web):
    await ask(web, "a blue boat", 3)
    assert {request.prompt for request in web.gateway.generator.requests} == {"a blue boat"}
    assert (len(web.gateway.generator.requests), web.gateway.refiner.requests) == (3, [])


async def test_a_picture_is_what_the_stage_made(web):
    reported = (await ask(web, number=1)).json()
    seed = web.gateway.generator.requests[0].images[0].seed
    shown = pixels(base64.b64decode(reported["generatedImgs"][0]))
    assert np.abs(shown - pixels(png(seed))).max() < 16


async def test_the_health_check(web):
    answer = await web.http.get("/", headers=BROWSER)
    assert (answer.status_code, answer.content) == (200, b'{"success":true}\n')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(("path", "method"), [("/dalle", "POST"), ("/generate", "POST"), ("/", "GET")])
async def test_the_browser_s_preflight(web, path, method):
    answer = await web.http.options(
        path,
        headers={
            "origin": PAGE,
            "access-control-request-method": method,
            "access-control-request-headers": "bypass-tunnel-reminder,mode",
        },
    )
    assert (answer.status_code, answer.content) == (200, b"")
    reported = {
        name: value for name, value in answer.headers.items() if name.startswith("access-control-allow")
    }
    assert reported == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        "access-control-allow-headers": "bypass-tunnel-reminder, mode",
    }


async def test_the_page_may_read_the_answer(web):
    answer = await ask(web)
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in answer.headers["vary"]


async def test_what_cannot_be_served_is_an_error_that_the_page_can_read(web):
    for content in (
        b"no json",
        b'{"num_images": 2}',
        b'{"text": "x", "num_images": 0}',
        b'{"text": "x", "num_images": 65}',
        b'{"text": "", "num_images": 1}',
        b'{"text": "x"}',
    ):
        answer = await web.http.post("/dalle", content=content, headers=BROWSER)
        assert (content, answer.status_code) == (content, 400)
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.json()["error"]["message"]


async def test_a_failure_is_said(web):
    web.gateway.generator.errors = {0: RuntimeError("broken")}
    answer = await ask(web, number=1)
    assert answer.status_code >= 500
    assert answer.json()["error"]["message"]
