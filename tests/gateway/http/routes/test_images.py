"""Pictures over HTTP: by the hash of their file, by a signed link, and as files to keep."""

import hashlib
import io

import pytest
from PIL import Image

from gateway.access.caller import Caller
from gateway.access.token_file import new_token, write_tokens
from gateway.http.image_files.signed_links import LIFETIME_S, LinkInvalid, LinkSigner
from tests.gateway.fake_stage import png
from tests.gateway.http.conftest import web_gateway
from tests.gateway.run_fixtures import collect, spec

SHA256 = hashlib.sha256(png(100)).hexdigest()


async def sketch(web):
    """A run with one sketch, of seed 100; its name."""
    events = await collect(web.gateway, spec(generate={"count": 1}, refine=None, upscale=None))
    return events[0].state.run


async def test_a_picture_is_found_by_the_hash_of_its_file(web):
    await sketch(web)
    answer = await web.http.get(f"/images/{SHA256}")
    assert (answer.content, answer.headers["content-type"]) == (png(100), "image/png")


async def test_it_may_be_kept_for_ever(web):
    await sketch(web)
    answer = await web.http.get(f"/images/{SHA256}")
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = await web.http.get(f"/images/{SHA256}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_it_is_saved_under_a_name_of_the_caller_s(web):
    await sketch(web)
    answer = await web.http.get(f"/images/{SHA256}", params={"download": 'a "röd" house\r\nx.png'})
    assert (
        answer.headers["content-disposition"]
        == "attachment; filename=\"a _r_d_ house__x.png\"; filename*=UTF-8''a%20%22r%C3%B6d%22%20house%0D%0Ax.png"
    )


async def test_another_picture_is_not_found(web):
    await sketch(web)
    for name in ("0" * 64, "x", "..%2f..%2fetc%2fpasswd", "A" * 64):
        assert (await web.http.get(f"/images/{name}")).status_code == 404, name


async def test_a_picture_to_keep_has_how_it_was_made(web):
    run = await sketch(web)
    answer = await web.http.get(f"/{run}/images/generate-0")
    kept = Image.open(io.BytesIO(answer.content))
    assert (kept.info["prompt"], kept.info["seed"], kept.info["run"]) == ("a red house", "100", run)
    assert kept.tobytes() == Image.open(io.BytesIO(png(100))).tobytes()
    assert answer.headers["content-disposition"].startswith("attachment; ")


async def test_a_picture_of_another_run_is_not_found(web):
    run = await sketch(web)
    assert (await web.http.get(f"/{run}/images/generate-7")).status_code == 404


async def test_pictures_of_others_are_not_found(tmp_path):
    ann, first = new_token(Caller("ann"))
    ben, second = new_token(Caller("ben"))
    write_tokens(tmp_path / "tokens.json", [first, second])
    async with web_gateway(tokens=tmp_path / "tokens.json", token=ann) as web:
        answer = await web.http.post(
            "/runs", json={"spec": {"prompt": "x", "seed": "100", "generate": {"count": 1}}}
        )
        events = await web.http.get(f"{answer.headers['location']}/events")
        assert '"finished"' in events.text
        assert (await web.http.get(f"/images/{SHA256}")).status_code == 200
        others = {"authorization": f"Bearer {ben}"}
        for path in (f"/images/{SHA256}", answer.headers["location"], f"{answer.headers['location']}/events"):
            assert (await web.http.get(path, headers=others)).status_code == 404


async def test_a_link_needs_no_token(tmp_path):
    token, entry = new_token(Caller("ann"))
    write_tokens(tmp_path / "tokens.json", [entry])
    async with web_gateway(tokens=tmp_path / "tokens.json", token=token) as web:
        answer = await web.http.post(
            "/runs", json={"spec": {"prompt": "x", "seed": "100", "generate": {"count": 1}}}
        )
        await web.http.get(f"{answer.headers['location']}/events")
        web.http.headers.pop("authorization")
        assert (await web.http.get(f"/images/{SHA256}")).status_code == 401
        assert (await web.http.get(web.api.links.sign(SHA256, "png", 100))).content == png(100)


async def test_a_link_that_was_changed_opens_nothing(web):
    await sketch(web)
    link = web.api.links.sign(SHA256, "png", 100)
    for changed in (link.replace("png", "jpeg"), link[:-1], f"{link}%C3%A4", link.replace(SHA256, "0" * 64)):
        answer = await web.http.get(changed)
        assert answer.status_code == 403
        assert answer.json()["error"]["reason"] == "LINK_INVALID"


def test_a_link_ends_after_an_hour():
    now = [1000.0]
    links = LinkSigner(clock=lambda: now[0])
    query = dict(part.split("=") for part in links.sign(SHA256, "png", 100).partition("?")[2].split("&"))
    now[0] += LIFETIME_S
    assert links.check(SHA256, query) == ("png", 100, None)
    now[0] += 1
    with pytest.raises(LinkInvalid, match="has expired"):
        links.check(SHA256, query)


def test_a_link_of_another_process_opens_nothing():
    query = dict(
        part.split("=") for part in LinkSigner().sign(SHA256, "png", 100).partition("?")[2].split("&")
    )
    with pytest.raises(LinkInvalid, match="did not sign"):
        LinkSigner().check(SHA256, query)


async def test_a_picture_that_is_no_longer_there_is_not_found_by_its_link(web):
    run = await sketch(web)
    link = web.api.links.sign(SHA256, "png", 100)
    await web.http.delete(f"/{run}")
    assert (await web.http.get(link)).status_code == 404
