"""Runs in a view of their own, and prompts that wait for their turn."""

import asyncio
import io
import json
import zipfile

import httpx
from PIL import Image
from playwright.async_api import expect

from tests.web.visitor import open_page


async def three_runs(visitor) -> None:
    for prompt in ("a red house", "a blue house", "a pine tree"):
        await visitor.begin(prompt, count=1, seed=len(prompt))
        await expect(visitor.page.get_by_role("heading", name=prompt)).to_be_visible()
        await visitor.sees_sketches(1)
        await expect(visitor.facts).to_contain_text("Ready")
    await visitor.shows_runs()
    await expect(visitor.runs).to_have_count(3)


async def test_runs_are_found_by_word_seed_state_model_and_star(visitor):
    await three_runs(visitor)
    search = visitor.page.get_by_role("searchbox", name="Search prompts and seeds")
    await search.fill("house")
    await expect(visitor.runs).to_have_count(2)
    await search.fill("12")
    await expect(visitor.runs.locator(".run-prompt")).to_have_text(["a blue house"])
    await search.fill("")
    await visitor.page.get_by_label("State").select_option("Failed")
    await expect(visitor.page.get_by_text("No run is like that.")).to_be_visible()
    await visitor.page.get_by_label("State").select_option("Any state")
    await visitor.page.get_by_label("Model", exact=True).select_option("scripted")
    await expect(visitor.runs).to_have_count(3)
    await visitor.button("Favourite: a red house").click()
    await visitor.page.get_by_label("Favourites").check()
    await expect(visitor.runs.locator(".run-prompt")).to_have_text(["a red house"])
    await visitor.page.reload()
    await visitor.page.get_by_label("Favourites").check()
    await expect(visitor.runs).to_have_count(1)
    await visitor.runs.get_by_role("link").click()
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    await expect(visitor.facts).to_contain_text("seed 11")


async def test_several_are_deleted_and_come_back(visitor, gateway):
    await three_runs(visitor)
    for place in (0, 2):
        await visitor.runs.nth(place).hover()
        await visitor.runs.nth(place).get_by_role("checkbox").check()
    await visitor.page.locator("#runs-delete").click()
    await expect(visitor.runs).to_have_count(1)
    await visitor.button("Undo").click()
    await expect(visitor.runs).to_have_count(3)
    visitor.expected.append("400")  # a run that waits for a choice is ended before it is deleted
    await visitor.button("Delete “a blue house”").click()
    deleted = visitor.page.expect_response(lambda one: one.request.method == "DELETE" and one.ok)
    async with deleted:
        await visitor.button("Close").click()
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        prompts = [run["spec"]["prompt"] for run in (await http.get("/runs")).json()["runs"]]
    assert prompts == ["a pine tree", "a red house"]


async def test_runs_are_saved_as_a_zip_file_with_what_is_known_of_them(visitor):
    await three_runs(visitor)
    await visitor.button("Choose all").click()
    async with visitor.page.expect_download() as downloading:
        await visitor.page.locator("#runs-zip").click()
    download = await downloading.value
    assert download.suggested_filename == "triptych-3-runs.zip"
    data = await asyncio.to_thread((await download.path()).read_bytes)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == 6
        told = next(name for name in names if name.startswith("a-red-house-") and name.endswith("run.json"))
        run = json.loads(archive.read(told))
        assert (run["spec"]["prompt"], run["spec"]["seed"]) == ("a red house", "11")
        picture = next(name for name in names if name.endswith("a-red-house-generate-0.png"))
        with Image.open(io.BytesIO(archive.read(picture))) as image:
            assert image.text["prompt"] == "a red house"


async def test_prompts_wait_their_turn_in_an_order_of_one_s_own(visitor, stages, gateway):
    stages.hold(stages.generator, 0)
    await visitor.begin("a red house", count=1)
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    for prompt in ("a blue house", "a pine tree", "a full moon"):
        await visitor.prompt.fill(prompt)
        await visitor.button("Make pictures").click()
    waiting = visitor.page.locator("#queue .queue-prompt")
    await expect(waiting).to_have_text(["a blue house", "a pine tree", "a full moon"])
    up = visitor.button("Move “a full moon” up")
    await up.focus()
    await visitor.page.keyboard.press("Enter")
    await expect(up).to_be_focused()
    await visitor.page.keyboard.press("Enter")
    await expect(waiting).to_have_text(["a full moon", "a blue house", "a pine tree"])
    await visitor.button("Move “a blue house” down").click()
    await expect(waiting).to_have_text(["a full moon", "a pine tree", "a blue house"])
    await visitor.button("Take “a pine tree” out").click()
    await expect(waiting).to_have_text(["a full moon", "a blue house"])
    await visitor.button("Undo").click()
    await expect(waiting).to_have_text(["a full moon", "a pine tree", "a blue house"])
    await visitor.button("Take “a blue house” out").click()
    await expect(waiting).to_have_text(["a full moon", "a pine tree"])
    await expect(visitor.page.get_by_role("link", name="Runs 3")).to_be_visible()
    # The gateway keeps them, and their order: also without the page, and after it was killed.
    await visitor.page.goto("about:blank")
    await gateway.kill()
    await gateway.start()
    await visitor.arrive()
    await expect(waiting).to_have_text(["a red house", "a full moon", "a pine tree"])
    stages.let_go(stages.generator)
    await expect(visitor.page.locator("#queue")).to_be_hidden()
    await expect(visitor.page.get_by_role("link", name="Runs", exact=True)).to_be_visible()
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        runs = (await http.get("/runs")).json()["runs"]
    begun = sorted(runs, key=lambda run: run["start_time"])
    assert [run["spec"]["prompt"] for run in begun] == ["a red house", "a full moon", "a pine tree"]


async def test_a_prompt_that_waits_can_begin_at_once(visitor, stages):
    stages.hold(stages.generator, 0)
    await visitor.begin("a red house", count=1)
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    await visitor.prompt.fill("a blue house")
    await visitor.button("Make pictures").click()
    await visitor.button("Begin now: “a blue house”").click()
    await expect(visitor.page.get_by_text("“a blue house” has begun.")).to_be_visible()
    await expect(visitor.page.get_by_role("heading", name="Under way")).to_be_visible()
    await visitor.page.get_by_role("link", name="a blue house").first.click()
    await expect(visitor.page.get_by_role("heading", name="a blue house")).to_be_visible()
    stages.let_go(stages.generator)
    await visitor.sees_sketches(1)


async def test_the_badge_counts_runs_that_others_begin_and_end(visitor, gateway, stages):
    badge = visitor.page.locator("#nav-busy")
    await expect(badge).to_be_empty()
    stages.hold(stages.generator, 0)
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        spec = {"prompt": "a red house", "generate": {"count": 1}}
        run = (await http.post("/runs", json={"spec": spec})).json()["name"]
        await expect(badge).to_have_text("1")
        await http.post(f"/{run}/cancel", json={})
    await expect(badge).to_be_empty()


async def test_a_run_under_way_is_cancelled_from_the_list(visitor, stages):
    stages.hold(stages.generator, 0)
    await visitor.begin("a red house", count=1)
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    await visitor.shows_runs()
    await visitor.button("Cancel “a red house”").click()
    await expect(visitor.runs.first).to_contain_text("Cancelled")


async def test_the_time_and_the_cost_of_a_run_are_shown(visitor):
    await visitor.begin(count=4)
    await visitor.sees_sketches(4)
    await expect(visitor.facts).to_contain_text("6 seconds of compute")
    await visitor.shows_runs()
    await visitor.page.get_by_text("What compute costs").click()
    await visitor.page.get_by_label("Price of an hour of compute").fill("3.6")
    await visitor.page.get_by_label("Price of an hour of compute").blur()
    await expect(visitor.runs.first).to_contain_text("6 seconds of compute · cost 0.0060")


async def test_prompt_and_link_are_copied(browser, gateway):
    visitor = await open_page(browser, gateway.url, permissions=["clipboard-read", "clipboard-write"])
    await visitor.arrive()
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    await visitor.button("Copy prompt").click()
    await expect(visitor.page.get_by_text("The prompt is copied.")).to_be_visible()
    assert await visitor.page.evaluate("() => navigator.clipboard.readText()") == "a red house"
    await visitor.button("Copy link").click()
    await expect(visitor.page.get_by_text("The link is copied.")).to_be_visible()
    assert "#/runs/" in await visitor.page.evaluate("() => navigator.clipboard.readText()")
    await visitor.pick("generate", 0)
    await visitor.act("Copy picture")
    await expect(visitor.page.get_by_text("The picture is copied.")).to_be_visible()
    assert visitor.unexpected == []
