"""The page over the real services with the built-in models; its pictures are those of the documentation.

`TRIPTYCH_PAGE_PICTURES=docs pytest -m slow tests/web/test_whole.py` makes docs/page-first.png, docs/page.png and
docs/page-phone.png anew.
"""

import os
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import expect

from tests.web.visitor import open_page
from triptych.cli.processes import running_pipeline
from triptych.stages import WORKER_NAMES

PROMPT = "a green tent in the desert at sunset"
SEED = 3
# Real models on a machine that may be busy.
TIMEOUT_MS = 600_000


@pytest_asyncio.fixture(loop_scope="module")
async def whole_gateway(tmp_path):
    """Where the page of four real services is."""
    keeping = ["--journal", str(tmp_path / "journal.db"), "--store", str(tmp_path / "pictures")]
    options = ["--port", "0", "--http-port", "0", *keeping]
    async with running_pipeline(
        {name: ["--port", "0"] for name in WORKER_NAMES}, gateway_options=options
    ) as running:
        yield f"http://{running.gateway.http}/"


@pytest.mark.slow
async def test_the_built_in_models_make_a_picture_on_the_page(browser, whole_gateway, tmp_path):
    is_for_docs = "TRIPTYCH_PAGE_PICTURES" in os.environ
    folder = Path(os.environ.get("TRIPTYCH_PAGE_PICTURES", tmp_path))
    visitor = await open_page(browser, whole_gateway)
    visitor.page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    await visitor.page.goto(whole_gateway)
    await expect(visitor.page.locator("#server-state")).to_contain_text("Ready")
    if is_for_docs:
        # What the models make of their own examples: the first screen as a newcomer finds it.
        await expect(visitor.page.locator("#welcome .example img")).to_have_count(6)
        await picture(visitor, folder / "page-first.png", width=1280, height=1080)
    count = 8 if is_for_docs else 2
    await visitor.set(refine_count=4 if is_for_docs else 2)
    await visitor.begin(PROMPT, count=count, seed=SEED)
    await visitor.sees_sketches(count)
    await expect(visitor.sketches.first.locator(".badge")).to_contain_text("match")
    await visitor.pick_best("generate")
    await visitor.act("Refine")
    await visitor.sees("refine", 4 if is_for_docs else 2)
    await expect(visitor.variations.first.locator(".badge")).to_contain_text("match")
    await visitor.pick_best("refine")
    await visitor.act("Upscale ×4")
    await visitor.sees("upscale", 1)
    await expect(visitor.detail.get_by_role("heading", name="Upscaled 1")).to_be_visible()
    await expect(visitor.facts).to_contain_text("Done")
    await picture(visitor, folder / "page.png", width=1280, height=1080)
    await picture(visitor, folder / "page-phone.png", width=390, height=1500)
    assert visitor.unexpected == []
    assert visitor.other_hosts == []


async def picture(visitor, path: Path, *, width: int, height: int) -> None:
    """The page from its top to that height."""
    await visitor.page.set_viewport_size({"width": width, "height": height})
    await visitor.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    await visitor.page.mouse.move(0, 0)
    await visitor.page.screenshot(path=path, animations="disabled")
    with Image.open(path) as shown:
        shown.convert("RGB").save(path, optimize=True)
