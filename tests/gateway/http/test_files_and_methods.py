"""Parts of files, names of files, methods, other sites, and GET /health."""

import hashlib

import pytest

from tests.gateway.fake_stage import png
from tests.gateway.run_fixtures import collect, spec

FILE = png(100)
PATH = f"/images/{hashlib.sha256(FILE).hexdigest()}"


@pytest.fixture
async def sketch(web):
    """A gateway with one picture, of seed 100."""
    await collect(web.gateway, spec(generate={"count": 1}, refine=None, upscale=None))
    return web


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=10-", 10, None), ("bytes=-5", -5, None), ("bytes=0-99999", 0, None)],
)
async def test_a_part_of_a_picture(sketch, asked, start, stop):
    answer = await sketch.http.get(PATH, headers={"range": asked})
    assert (answer.status_code, answer.content) == (206, FILE[start:stop])
    first, _, rest = answer.headers["content-range"].removeprefix("bytes ").partition("-")
    assert FILE[int(first) :].startswith(answer.content)
    assert rest.endswith(f"/{len(FILE)}")


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "bytes=5-1", "bytes=-", "lines=1-2", "bytes=x"])
async def test_a_range_that_means_nothing_gets_the_whole(sketch, asked):
    answer = await sketch.http.get(PATH, headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, FILE)


@pytest.mark.parametrize("asked", ["bytes=99999-", "bytes=-0"])
async def test_a_range_beyond_the_file_is_refused_with_its_size(sketch, asked):
    answer = await sketch.http.get(PATH, headers={"range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(FILE)}")


async def test_a_part_of_another_file_is_the_whole_file(sketch):
    etag = (await sketch.http.get(PATH)).headers["etag"]
    same = await sketch.http.get(PATH, headers={"range": "bytes=1-", "if-range": etag})
    other = await sketch.http.get(PATH, headers={"range": "bytes=1-", "if-range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


async def test_head_answers_as_get_would(sketch):
    link = sketch.api.links.sign(PATH.removeprefix("/images/"), "png", 100)
    for path in (PATH, link, "/v1/models", "/health", "/runs", "/models", "/"):
        got, head = await sketch.http.get(path), await sketch.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-length"] == got.headers["content-length"]


async def test_a_picture_has_a_name_for_programs_that_save_it(sketch):
    for path in (PATH, sketch.api.links.sign(PATH.removeprefix("/images/"), "png", 100)):
        named = (await sketch.http.get(path)).headers["content-disposition"]
        assert named.startswith(f'inline; filename="{PATH[8:20]}.png"')


async def test_another_site_may_fetch_a_signed_link(sketch):
    link = sketch.api.links.sign(PATH.removeprefix("/images/"), "png", 100)
    site = {"origin": "https://example.com"}
    answer = await sketch.http.get(link, headers=site)
    assert answer.headers["access-control-allow-origin"] == "https://example.com"
    preflight = {**site, "access-control-request-method": "GET", "access-control-request-headers": "range"}
    assert (await sketch.http.options(link, headers=preflight)).headers[
        "access-control-allow-headers"
    ] == "range"
    assert "access-control-allow-origin" not in (await sketch.http.get(PATH, headers=site)).headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/runs", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/runs/x", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", "/v1/images/generations", "OPTIONS, POST"),
        ("GET", "/dalle", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method_gets_the_right_ones(web, method, path, allowed):
    answer = await web.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    options = await web.http.options(path)
    assert (options.status_code in (200, 204), options.headers["allow"]) == (True, allowed)


async def test_health_reports_which_stages_are_ready(web):
    answer = await web.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    await web.gateway.refiner.kill()
    await web.gateway.notice()
    answer = await web.http.get("/health")
    assert answer.status_code == 503
    assert {name: stage["ready"] for name, stage in answer.json()["stages"].items()} == {
        "generate": True,
        "refine": False,
        "upscale": True,
    }
    assert (await web.http.get("/health?stage=generate")).status_code == 200
    assert (await web.http.get("/health?stage=paint")).status_code == 400
