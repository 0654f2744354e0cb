"""A page with the calls of dalle-playground, in Chromium; $DALLE_PLAYGROUND names a built checkout to open in its place.

`yarn build` in its folder `interface` makes the folder `build`. Its newest version posts to /generate, older ones to /dalle.
"""

import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

BASE, VERSION = sys.argv[1].removesuffix("/v1"), sys.argv[4]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
CHECKOUT = os.environ.get("DALLE_PLAYGROUND")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def draw_on_page(page: Page, address: str) -> int:
    page.goto(f"{address}/dalle_playground.html#{VERSION}")
    page.get_by_label("Back end").fill(BASE)
    page.get_by_label("Prompt").fill("a red house")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("status").filter(has_text="done").wait_for()
    return page.locator("#pictures img").count()


def draw_on_its_own_page(page: Page, address: str) -> int:
    page.goto(address)
    page.get_by_label("Backend URL").fill(BASE)
    prompt = page.get_by_label("Text prompt")
    prompt.fill("a red house")
    prompt.press("Enter")
    page.locator("img[src^='data:image/']").first.wait_for()
    return page.locator("img[src^='data:image/']").count()


folder = Path(CHECKOUT, "interface", "build") if CHECKOUT else Path(__file__).parent
server = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder))
)
threading.Thread(target=server.serve_forever, daemon=True).start()
with sync_playwright() as playwright:
    # Containers run this as root, for whom Chromium has no sandbox.
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    draw = draw_on_its_own_page if CHECKOUT else draw_on_page
    assert draw(browser.new_page(), f"http://localhost:{server.server_address[1]}") >= 2
    browser.close()
print("made")
