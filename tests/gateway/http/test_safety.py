"""What every answer says to browsers, and who is answered at all."""

import pytest

from gateway.http.safety import HEADERS

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


@pytest.mark.parametrize("host", ["elsewhere.example", "127.0.0.1.elsewhere.example", "", "[::1"])
async def test_on_loopback_nobody_is_answered_under_another_name(web, host):
    answer = await web.http.get("/runs", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (421, "WRONG_HOST")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080"])
async def test_loopback_has_several_names(web, host):
    assert (await web.http.get("/runs", headers={"host": host})).status_code == 200
