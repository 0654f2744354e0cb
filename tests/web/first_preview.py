"""Measures how long after the gateway's first preview event the page shows a picture: `python -m tests.web.first_preview`.

The stages are scripted, so what is measured is the gateway, the network and the browser, and no model.
"""

import asyncio
import json
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import httpx
from playwright.async_api import async_playwright

from tests.web.conftest import CHROMIUM
from tests.web.drawing import drawing_stages
from tests.web.gateway_process import GatewayProcess
from tests.web.visitor import open_page

NUM_RUNS = 20
COUNT = 8
# When the first picture of a card has been painted, in milliseconds of the clock that the gateway has, too.
WATCH = """
new MutationObserver(() => {
    const shown = document.querySelector(".card[data-state=working] img:not([hidden])");
    if (!shown || window.isPainting) return;
    window.isPainting = true;
    requestAnimationFrame(() => requestAnimationFrame(() => tellPainted(Date.now())));
}).observe(document, { subtree: true, childList: true, attributes: true });
"""


async def first_preview_ms(url: str, run: str) -> float:
    """When the gateway sent its first preview."""
    async with (
        httpx.AsyncClient(timeout=120) as http,
        http.stream("GET", f"{url}runs/{run}/events") as reported,
    ):
        async for line in reported.aiter_lines():
            if line.startswith("data:") and "preview" in (event := json.loads(line[5:])):
                return datetime.fromisoformat(event["time"]).timestamp() * 1000
    raise RuntimeError("the run had no preview")


async def measure() -> list[float]:
    delays = []
    async with drawing_stages() as stages, async_playwright() as playwright:
        with tempfile.TemporaryDirectory() as folder:
            gateway = GatewayProcess(Path(folder), stages.options)
            await gateway.start()
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for _ in range(NUM_RUNS):
                stages.hold(stages.generator, *range(COUNT))
                visitor = await open_page(browser, gateway.url)
                painted = asyncio.get_running_loop().create_future()
                await visitor.page.expose_function(
                    "tellPainted", lambda at, seen=painted: seen.set_result(at)
                )
                await visitor.page.add_init_script(WATCH)
                await visitor.arrive()
                await visitor.begin(count=COUNT)
                painted_ms = await painted
                run = visitor.page.url.rpartition("/")[2]
                delays.append(painted_ms - await first_preview_ms(gateway.url, run))
                stages.let_go(stages.generator)
                await visitor.page.context.close()
            await browser.close()
            await gateway.kill()
    return delays


if __name__ == "__main__":
    seen = asyncio.run(measure())
    sys.stdout.write(
        f"{len(seen)} runs of {COUNT} sketches: first preview on the screen {statistics.median(seen):.0f} ms "
        f"(median), {max(seen):.0f} ms (longest) after the gateway's event\n"
    )
