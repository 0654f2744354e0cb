"""What every answer says to browsers, and who is answered at all."""

import httpx
import pytest

from gateway.callers import Caller
from gateway.http.safety import HEADERS
from gateway.http.server import serving_http
from gateway.token_file import new_token, write_tokens
from tests.gateway.http.conftest import web_gateway

FOREIGN = "https://elsewhere.example"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/runs"),
        ("GET", "/nothing"),
        ("GET", "/web/nothing"),
        ("GET", "/runs/none/events"),
        ("POST", "/v1/images/generations"),
        ("OPTIONS", "/dalle"),
    ],
)
async def test_every_answer_is_strict(web, method, path):
    answer = await web.http.request(method, path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_a_bug_s_answer_is_strict_too(web, caplog):
    web.gateway.facade.list_models = None
    answer = await web.http.get("/models")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "TypeError" in caplog.text


@pytest.mark.parametrize("path", ["/runs", "/models", "/images/x", "/web/x", "/runs/x/events"])
async def test_pages_of_other_sites_may_not_read_our_own_routes(web, path):
    answer = await web.http.get(path, headers={"origin": FOREIGN})
    assert "access-control-allow-origin" not in answer.headers
    preflight = await web.http.options(
        path, headers={"origin": FOREIGN, "access-control-request-method": "POST"}
    )
    assert "access-control-allow-origin" not in preflight.headers
    assert preflight.status_code in (404, 405)


async def test_pages_of_other_sites_may_use_openai_s_api(web):
    preflight = await web.http.options(
        "/v1/images/generations",
        headers={
            "origin": FOREIGN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,authorization",
        },
    )
    assert preflight.headers["access-control-allow-origin"] == FOREIGN
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
    answer = await web.http.get("/v1/models", headers={"origin": FOREIGN})
    assert answer.headers["access-control-allow-origin"] == FOREIGN


@pytest.mark.parametrize(
    "host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "", "[::1", "127.0.0.1@elsewhere.example"]
)
async def test_without_tokens_nobody_is_answered_under_another_name(web, host):
    answer = await web.http.get("/runs", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (421, "WRONG_HOST")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "10.0.0.7"])
async def test_an_address_is_nobody_else_s_name(web, host):
    assert (await web.http.get("/runs", headers={"host": host})).status_code == 200


async def test_other_names_are_made_known(web):
    async with (
        serving_http(web.api, hosts=["Pictures.example"]) as serving,
        httpx.AsyncClient(base_url=f"http://{serving.address}") as http,
    ):
        for name, status in (("pictures.example:8080", 200), ("elsewhere.example", 421)):
            assert (await http.get("/runs", headers={"host": name})).status_code == status


async def test_where_there_are_tokens_any_name_will_do(tmp_path):
    token, entry = new_token(Caller("ann"))
    write_tokens(tmp_path / "tokens.json", [entry])
    async with web_gateway(tokens=tmp_path / "tokens.json", token=token) as web:
        assert (await web.http.get("/runs", headers={"host": "elsewhere.example"})).status_code == 200
