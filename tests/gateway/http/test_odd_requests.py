"""Requests as programs write them: other names of fields, other spellings of values, other forms of addresses."""

import asyncio
import base64
import json

import pytest

from tests.gateway.fake_stage import png
from triptych.v1.stage_pb2 import FIT_PAD

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
BASE64 = base64.b64encode(png(3)).decode()
JSON = {"content-type": "application/json"}


async def ask(painter, body, path=GENERATIONS):
    return await painter.http.post(path, content=body, headers=JSON)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "DALL-E-3"},
        {"model": " gpt-image-1 "},
        {"response_format": "B64_JSON"},
        {"output_format": "JPG"},
        {"quality": "HD"},
    ],
    ids=json.dumps,
)
async def test_other_spellings_of_a_value_mean_the_same(painter, fields):
    answer = await ask(painter, json.dumps({"prompt": "x", **fields}))
    assert answer.status_code == 200
    assert "warnings" not in answer.json()


async def test_a_body_may_begin_with_a_byte_order_mark(painter):
    assert (await ask(painter, b"\xef\xbb\xbf" + b'{"prompt": "x"}')).status_code == 200


async def test_half_of_an_emoji_is_explained(painter):
    answer = await ask(painter, rb'{"prompt": "a cat \ud83d"}')
    assert answer.status_code == 400
    assert "half of a surrogate pair" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images", "images[]", "images[7]"])
async def test_a_picture_has_any_name_that_libraries_give_it(painter, name):
    sent = {"prompt": (None, "x"), name: ("a.png", png(3), "image/png")}
    assert (await painter.http.post(EDITS, files=sent)).status_code == 200
    assert painter.gateway.refiner.requests[0].init_image.data == png(3)


@pytest.mark.parametrize(
    "text",
    [
        f"DATA:image/png;base64,{BASE64}",
        f"data:image/png;BASE64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{BASE64}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        base64.urlsafe_b64encode(png(3)).decode(),
        "\r\n".join(BASE64[place : place + 76] for place in range(0, len(BASE64), 76)),
    ],
    ids=["DATA", "BASE64", "charset", "no padding", "for addresses", "lines"],
)
async def test_a_picture_in_base64_has_any_of_its_forms(painter, text):
    assert (await ask(painter, json.dumps({"prompt": "x", "image": text}), EDITS)).status_code == 200
    form = {"prompt": (None, "x"), "image": (None, text)}
    assert (await painter.http.post(EDITS, files=form)).status_code == 200
    assert {request.init_image.data for request in painter.gateway.refiner.requests} == {png(3)}


@pytest.mark.parametrize("prefix", ["", "/openai", "/api/v1", "/v1/v1"])
async def test_another_base_url_is_answered_with_the_right_one(painter, prefix):
    answer = await painter.http.post(f"{prefix}/images/generations", json={"prompt": "x"})
    assert answer.status_code == 404
    assert f"set it to {painter.url}/v1 " in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "//v1/images/generations",
        "/v1//images/generations/",
        "/openai/v1/images/generations",
        "/openai/deployments/our-pictures/images/generations?api-version=2024-02-01",
    ],
)
async def test_another_spelling_of_the_path_is_the_same(painter, path):
    # A client of Azure names its deployment in the body, too.
    body = {"prompt": "x", "model": "our-pictures"} if "deployments" in path else {"prompt": "x"}
    answer = await painter.http.post(f"{painter.url}{path}", json=body)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["url"].startswith(f"{painter.url}/images/")


async def test_the_models_are_listed_with_a_slash_at_the_end(painter):
    assert "tiny" in [model["id"] for model in (await painter.http.get("/v1/models/")).json()["data"]]


async def test_dall_e_answers_with_a_link_in_whichever_case(painter):
    answer = await ask(painter, b'{"prompt": "x", "model": "DALL-E-3"}')
    assert set(answer.json()["data"][0]) >= {"url"}
    assert "b64_json" not in answer.json()["data"][0]


async def test_a_picture_of_another_aspect_can_be_padded(painter):
    data = {"prompt": "x", "fit": "pad"}
    files = {"image": ("a.png", png(3), "image/png")}
    assert (await painter.http.post(EDITS, files=files, data=data)).status_code == 200
    assert painter.gateway.refiner.requests[0].settings.fit == FIT_PAD


@pytest.mark.parametrize("number", ["2", 2, 2.0])
async def test_the_playground_may_send_its_number_in_any_form(painter, number):
    answer = await painter.http.post("/dalle", content=json.dumps({"text": "x", "num_images": number}))
    assert len(answer.json()["generatedImgs"]) == 2


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/v1/models", 200),
        ("http://localhost", 200),
        ("http://evil.example.com/v1/models", 421),
    ],
)
async def test_a_request_for_a_whole_address_is_one_for_its_path(web, target, status):
    reader, writer = await asyncio.open_connection(*web.url.removeprefix("http://").split(":"))
    writer.write(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    assert line.split()[1] == str(status).encode()


async def test_a_name_may_end_with_a_dot(web):
    assert (await web.http.get("/v1/models", headers={"host": "localhost."})).status_code == 200
