"""A page that stays open for an hour with twenty runs: its memory, by Chromium's own counters after a garbage collection.

The test has a fake clock, whose hour takes seconds. `TRIPTYCH_PAGE_MINUTES=60 pytest -m slow tests/web/test_memory.py -s`
stays as long by the real clock and prints what it measures.
"""

import asyncio
import os
from dataclasses import dataclass

import pytest
from playwright.async_api import expect

NUM_RUNS = 20
MAX_GROWTH_BYTES = 50 * 2**20
# Of elements: those of the list of runs, and of one run that is open.
MAX_NODES = 5_000
HOUR_S = 3_600
STEP_S = 30


@dataclass
class Size:
    heap_bytes: int
    num_nodes: int
    num_listeners: int


class Meter:
    def __init__(self, session) -> None:
        self._session = session

    async def read(self) -> Size:
        await self._session.send("HeapProfiler.collectGarbage")
        heap = await self._session.send("Runtime.getHeapUsage")
        dom = await self._session.send("Memory.getDOMCounters")
        # Strings and files that the page holds beside the objects of JavaScript.
        total = heap["usedSize"] + heap.get("embedderHeapUsedSize", 0) + heap.get("backingStorageSize", 0)
        return Size(int(total), dom["nodes"], dom["jsEventListeners"])


async def meter_of(visitor) -> Meter:
    return Meter(await visitor.page.context.new_cdp_session(visitor.page))


async def make_a_run(visitor, number: int) -> None:
    """From sketches to an upscaled picture, then once through the list of runs."""
    await visitor.prompt.fill(f"a red house {number}")
    await visitor.button("Make pictures").click()
    await expect(
        visitor.page.get_by_role("heading", name=f"a red house {number}", exact=True)
    ).to_be_visible()
    await visitor.sees_sketches(2)
    await visitor.refine(0, count=2)
    await visitor.upscale()
    await expect(visitor.facts).to_contain_text("Done")
    await visitor.shows_runs()
    await visitor.page.get_by_role("link", name="Create", exact=True).click()


def check(before: Size, after: Size) -> None:
    assert after.heap_bytes - before.heap_bytes < MAX_GROWTH_BYTES
    assert after.num_nodes < MAX_NODES


# Longer than others: twenty runs of three stages.
@pytest.mark.timeout(900)
async def test_an_hour_with_twenty_runs_takes_less_than_50_mb(visitor):
    meter = await meter_of(visitor)
    await visitor.set(generate_count=2, refine_count=2)
    await make_a_run(visitor, 0)
    before = await meter.read()
    for number in range(1, NUM_RUNS + 1):
        await make_a_run(visitor, number)
    await visitor.page.clock.install()
    for _ in range(HOUR_S // STEP_S):
        await visitor.page.clock.run_for(STEP_S * 1_000)
    check(before, await meter.read())


@pytest.mark.slow
@pytest.mark.timeout(3 * HOUR_S)
async def test_a_long_stay_by_the_real_clock_takes_less_than_50_mb(visitor):
    minutes = float(os.environ.get("TRIPTYCH_PAGE_MINUTES", "60"))
    meter = await meter_of(visitor)
    await visitor.set(generate_count=2, refine_count=2)
    await make_a_run(visitor, 0)
    before = await meter.read()
    print(f"after the first run: {before}")
    for number in range(1, NUM_RUNS + 1):
        await asyncio.sleep(minutes * 60 / NUM_RUNS)
        await make_a_run(visitor, number)
        print(f"after {number} more runs: {await meter.read()}", flush=True)
    check(before, await meter.read())
