"""The headers of every answer for browsers, and who is answered at all."""

import httpx

from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from gateway.http.middleware.security import HEADERS
from gateway.http.server import serving_http
from tests.gateway.http.conftest import web_gateway

FOREIGN = "https://elsewhere.example"


async def test_every_answer_is_strict(web):
    calls = {
        "/": "GET",
        "/runs": "GET",
        "/nothing": "GET",
        "/web/nothing": "GET",
        "/runs/none/events": "GET",
        "/v1/images/generations": "POST",
        "/dalle": "OPTIONS",
    }
    for path, method in calls.items():
        answer = await web.http.request(method, path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path


async def test_parts_of_the_page_have_its_policy_and_no_headers_of_their_own(web):
    for path in ("/web/main.js", "/web/page.css"):
        answer = await web.http.get(path)
        assert {name for name in HEADERS if name in answer.headers} == {"x-content-type-options"}
    # A drawing can be opened by itself, and could have scripts.
    assert "content-security-policy" in (await web.http.get("/web/icon.svg")).headers


def test_the_page_s_policy_has_no_holes():
    policy = HEADERS["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_a_bug_s_answer_is_strict_too(web, caplog):
    web.gateway.facade.list_models = None
    answer = await web.http.get("/models")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "TypeError" in caplog.text


async def test_pages_of_other_sites_may_not_read_our_own_routes(web):
    for path in ("/runs", "/models", "/images/x", "/web/x", "/runs/x/events"):
        answer = await web.http.get(path, headers={"origin": FOREIGN})
        assert "access-control-allow-origin" not in answer.headers, path
        preflight = await web.http.options(
            path, headers={"origin": FOREIGN, "access-control-request-method": "POST"}
        )
        assert "access-control-allow-origin" not in preflight.headers, path
        assert preflight.status_code in (204, 404, 405), path


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


async def test_without_tokens_nobody_is_answered_under_another_name(web):
    for host in (
        "elsewhere.example",
        "127.0.0.1.elsewhere.example",
        "",
        "[::1",
        "127.0.0.1@elsewhere.example",
    ):
        answer = await web.http.get("/runs", headers={"host": host})
        assert (host, answer.status_code, answer.json()["error"]["reason"]) == (host, 421, "WRONG_HOST")


async def test_an_address_is_nobody_else_s_name(web):
    for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "10.0.0.7"):
        assert (await web.http.get("/runs", headers={"host": host})).status_code == 200, host


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
