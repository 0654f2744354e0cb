"""Five tasks in clicks, counted by the browser, as docs/page.md has them beside two other programs."""

import re
from contextlib import asynccontextmanager

from tests.web.gateway_process import ROOT
from tests.web.test_own_pictures import bring, photo

# Trusted clicks of a pointer, and not those that a script or a key makes, or the end of a stroke of the brush.
COUNT = """() => {
    const isClick = (event) => event.isTrusted && event.detail > 0 && event.target.tagName !== "CANVAS";
    if (window.clicks === undefined) addEventListener("click", (event) => isClick(event) && window.clicks++, true);
    window.clicks = 0;
}"""


def documented() -> dict[str, list[int]]:
    """The rows of the table: the clicks of Triptych, Invoke and AUTOMATIC1111."""
    text = (ROOT / "docs/page.md").read_text("utf-8").partition("## Five tasks in clicks")[2]
    rows = re.findall(r"^\| ([A-Z][^|]+) \|([^|]+)\|([^|]+)\|([^|]+)\|$", text, re.MULTILINE)
    return {
        task: [int(re.search(r"\d+", cell)[0]) for cell in cells]
        for task, *cells in rows
        if "Triptych" not in cells[0]
    }


@asynccontextmanager
async def counted(visitor, task: str):
    """The clicks inside the block are those of the table, and no more than in the other programs."""
    await visitor.page.evaluate(COUNT)
    yield
    clicks = await visitor.page.evaluate("() => window.clicks")
    ours, *others = documented()[task]
    assert clicks == ours
    assert all(ours <= theirs for theirs in others)


def test_the_table_has_five_tasks():
    assert len(documented()) == 5


async def test_a_picture_is_made_and_varied(visitor):
    await visitor.set(generate_count=4)
    async with counted(visitor, "Make a picture of X"):
        await visitor.prompt.fill("a red house")
        await visitor.prompt.press("Enter")
        await visitor.sees_sketches(4)
    async with counted(visitor, "Vary one"):
        await visitor.sketches.nth(1).locator(".face").click()
        await visitor.act("Vary")
        await visitor.sees("refine", 4)


async def test_the_sky_of_a_photo_is_changed(visitor, stages):
    await bring(visitor, photo(48, 48), "drop")
    async with counted(visitor, "Change the sky of a photo"):
        await visitor.act("Edit a part")
        await visitor.page.get_by_label("What the whole picture should show then").fill("a garden at sunset")
        box = await visitor.page.get_by_label("Picture to paint on").bounding_box()
        await visitor.page.mouse.move(box["x"] + 20, box["y"] + 20)
        await visitor.page.mouse.down()
        await visitor.page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 30, steps=4)
        await visitor.page.mouse.up()
        await visitor.button("Make this part anew").click()
        await visitor.sees("refine", 4)
    assert stages.refiner.requests[0].HasField("mask")


async def test_last_week_s_picture_and_its_seed_are_found(visitor):
    await visitor.begin("a blue house", count=1, seed=77)
    await visitor.sees_sketches(1)
    await visitor.page.goto(visitor.url)
    async with counted(visitor, "Find last week's picture and its seed"):
        await visitor.shows_runs()
        await visitor.page.get_by_role("searchbox", name="Search prompts and seeds").fill("blue")
        await visitor.runs.get_by_text("seed 77").wait_for()


async def test_three_are_upscaled_at_once(visitor):
    await visitor.begin(count=4)
    await visitor.sees_sketches(4)
    async with counted(visitor, "Upscale three at once"):
        await visitor.sketches.nth(0).hover()
        await visitor.sketches.nth(0).get_by_role("checkbox").check()
        await visitor.sketches.nth(2).hover()
        await visitor.sketches.nth(2).get_by_role("checkbox").click(modifiers=["Shift"])
        bar = visitor.page.get_by_role("group", name="With the chosen ones")
        await bar.get_by_text("3 chosen").wait_for()
        await bar.get_by_role("button", name="Upscale").click()
        await visitor.sees("upscale", 3)
