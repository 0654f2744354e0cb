"""The page's files, as browsers are given them."""

import pytest

from gateway.http.routes.page import FILES, FOLDER, read_page

HTML = {"accept": "text/html"}
TYPES = {
    "main.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def test_every_file_of_the_page_is_served():
    assert set(FILES) == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", TYPES)
async def test_a_file_comes_whole_with_a_type_that_browsers_run(web, name):
    answer = await web.http.get(f"/web/{name}")
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[name]
    assert answer.headers["cache-control"] == "no-cache"


async def test_browsers_get_the_page_at_its_address(web):
    answer = await web.http.get("/", headers=HTML)
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "Accept" in answer.headers["vary"].split(", ")


@pytest.mark.parametrize("path", ["/", "/web/main.js"])
async def test_what_has_not_changed_does_not_come_again(web, path):
    first = await web.http.get(path, headers=HTML)
    again = await web.http.get(path, headers={**HTML, "if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])


async def test_what_has_changed_comes_again(web):
    answer = await web.http.get("/web/main.js", headers={"if-none-match": '"other"'})
    assert (answer.status_code, len(answer.content)) == (200, (FOLDER / "main.js").stat().st_size)


@pytest.mark.parametrize(
    "path", ["/web/", "/web/nothing.js", "/web/../http/page.py", "/web/%2e%2e/__init__.py"]
)
async def test_there_is_nothing_else_below_the_page_s_files(web, path):
    assert (await web.http.get(path)).status_code == 404


def test_a_file_that_is_rewritten_later_stays_what_it_was(tmp_path):
    (tmp_path / "main.js").write_text("run();")
    files = read_page(tmp_path)
    (tmp_path / "main.js").write_text("")
    assert files["main.js"].data == b"run();"


def test_without_a_page_there_are_no_files(tmp_path):
    assert read_page(tmp_path / "nothing") == {}
