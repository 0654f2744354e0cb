"""The two calls of dalle-playground's page, made by a real browser on a page of another site."""

import asyncio
from contextlib import asynccontextmanager

from tests.gateway.http.conftest import web_gateway

# What its page calls, in the same way: JSON sent as text, and headers that make the browser ask first.
CALLS = """
const headers = {"Bypass-Tunnel-Reminder": "go", mode: "no-cors"};
const check = (url) => fetch(url, {headers}).then((answer) => answer.text());
const draw = async (url, text, num_images) => {
  const answer = await fetch(url + "/dalle", {method: "POST", headers, body: JSON.stringify({text, num_images})});
  const {generatedImgs, generatedImgsFormat} = await answer.json();
  return Promise.all(generatedImgs.map(async (data) => {
    const picture = new Image();
    picture.src = `data:image/${generatedImgsFormat};base64,${data}`;
    await picture.decode();
    return picture.naturalWidth;
  }));
};
const call = (url, path, options) => fetch(url + path, options).then(() => "read", () => "refused");
"""


@asynccontextmanager
async def elsewhere(browser):
    """A page of a site on this machine, as developers with dalle-playground have it."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        html = f"<!doctype html><title>elsewhere</title><link rel=icon href=data:,><script>{CALLS}</script>"
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + html.encode()
        )
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        page = await (await browser.new_context()).new_page()
        await page.goto(f"http://localhost:{server.sockets[0].getsockname()[1]}/")
        yield page
        await page.context.close()


async def test_its_page_finds_the_back_end_and_shows_the_pictures(browser):
    async with web_gateway() as web, elsewhere(browser) as page:
        assert await page.evaluate("(url) => check(url)", web.url) == '{"success":true}\n'
        assert await page.evaluate("(url) => draw(url, 'a red house', 2)", web.url) == [8, 8]


async def test_a_page_of_another_site_can_neither_see_nor_begin_runs(browser):
    async with web_gateway() as web, elsewhere(browser) as page:
        options = {"method": "POST", "headers": {"content-type": "application/json"}, "body": "{}"}
        assert await page.evaluate("(url) => call(url, '/runs')", web.url) == "refused"
        ask = "([url, options]) => call(url, '/runs', options)"
        assert await page.evaluate(ask, [web.url, options]) == "refused"
