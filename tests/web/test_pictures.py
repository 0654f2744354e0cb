"""Pictures first: made, looked at large, compared, chosen, and taken on."""

import math

import pytest
from PIL import Image
from playwright.async_api import expect

from tests.web.visitor import READY, open_page
from triptych.v1.stage_pb2 import StageEvent

NAMES_TO_ROOT = """(one) => {
    const names = [];
    for (let item = one.closest("li"); item; item = item.parentElement.closest("li")) {
        names.push(item.querySelector(".node-text").textContent.split("\\n")[0]);
    }
    return names;
}"""


async def test_a_prompt_becomes_a_file_through_two_choices(visitor):
    await visitor.begin("a red house by the sea", count=3, seed=100)
    await visitor.sees_sketches(3)
    await visitor.refine(1)
    await visitor.pick("refine", 2)
    await visitor.upscale()
    async with visitor.page.expect_download() as downloading:
        await visitor.act("Download")
    download = await downloading.value
    assert download.suggested_filename == "a-red-house-by-the-sea-upscale-0.png"
    with Image.open(await download.path()) as picture:
        assert picture.size == (128, 128)
        assert picture.text["prompt"] == "a red house by the sea"
        assert picture.text["parent"] == "refine-2"


async def test_a_sketch_is_seen_before_it_is_ready(visitor, stages):
    stages.hold(stages.generator, 0, 1)
    await visitor.begin(count=2)
    blurred = visitor.page.locator(".card[data-state=working] img")
    await expect(blurred.first).to_be_visible()
    assert await blurred.first.evaluate("img => getComputedStyle(img).filter") != "blur(0px)"
    stages.let_go(stages.generator)
    await visitor.sees_sketches(2)
    await expect(visitor.sketches.first.locator("img")).to_have_css("filter", "blur(0px)")


@pytest.mark.parametrize(
    ("width", "per_row", "least_px"), [(360, 2, 130), (768, 3, 200), (1280, 3, 200), (1920, 4, 200)]
)
async def test_sketches_are_large_at_every_width(browser, gateway, width, per_row, least_px):
    visitor = await open_page(browser, gateway.url, viewport={"width": width, "height": 860})
    await visitor.arrive()
    await visitor.begin(count=8)
    await visitor.sees_sketches(8)
    boxes = await visitor.sketches.locator(".face").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().toJSON())"
    )
    assert min(box["width"] for box in boxes) >= least_px
    first_row = [box for box in boxes if abs(box["top"] - boxes[0]["top"]) < 2]
    assert len(first_row) >= per_row if width > 360 else len(first_row) == per_row


@pytest.mark.parametrize("size", [(360, 740), (768, 1000), (1280, 860), (1920, 1080)])
async def test_a_click_shows_a_picture_large_with_its_actions_in_sight(browser, gateway, stages, size):
    visitor = await open_page(
        browser, gateway.url, viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce"
    )
    await visitor.arrive()
    await visitor.begin(count=4)
    await visitor.sees_sketches(4)
    asked = len(stages.refiner.requests)
    await visitor.pick("generate", 2)
    await expect(visitor.detail.locator("img.after")).to_be_in_viewport(ratio=0.9)
    for name in ("Refine", "Vary", "Edit a part", "Upscale ×4"):
        await expect(visitor.detail.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    # Looking costs nothing.
    assert len(stages.refiner.requests) == asked
    assert stages.upscaler.requests == []


async def test_refine_keeps_more_of_a_picture_than_vary(visitor, stages):
    await visitor.begin(count=1)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await visitor.act("Refine")
    await visitor.sees("refine", 4)
    assert {one.settings.skip_ratio for one in stages.refiner.requests} == {0.5}
    stages.refiner.requests.clear()
    await visitor.pick("generate", 0)
    await visitor.act("Vary")
    await visitor.sees("refine", 8)
    assert {one.settings.skip_ratio for one in stages.refiner.requests} == {0.25}


async def test_a_variation_is_compared_with_its_sketch_from_the_middle(visitor):
    await visitor.begin(count=1)
    await visitor.sees_sketches(1)
    await visitor.refine(0)
    line = visitor.page.get_by_role("slider", name="Compare with sketch 1")
    await expect(line).to_have_value("50")
    after = visitor.detail.locator("img.after")
    await expect(after).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
    await expect(visitor.detail.locator("img.before")).to_be_visible()
    await line.press("End")
    await expect(after).to_have_css("clip-path", "inset(0px 0px 0px 100%)")


async def test_an_upscaled_picture_is_shown_at_its_own_pixels(visitor):
    await visitor.begin(count=1)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await visitor.upscale()
    assert (
        await visitor.detail.locator("img.after").evaluate("img => img.getBoundingClientRect().width") == 128
    )
    await visitor.act("Full size")
    await expect(
        visitor.page.get_by_role("dialog", name="Upscaled 1, 128 × 128").locator("output")
    ).to_have_text("100 %")


async def test_the_tree_shows_what_came_from_what_with_names_and_scores(visitor, stages):
    stages.refiner.rank_answer = [0.75, 0.75]
    await visitor.begin(count=2)
    await visitor.sees_sketches(2)
    stages.refiner.rank_answer = None
    await visitor.refine(1)
    await visitor.pick("refine", 0)
    await visitor.upscale()
    tree = visitor.page.locator("#tree .branches")
    names = await tree.get_by_role("button", name="Upscaled 1").evaluate(NAMES_TO_ROOT)
    assert names == ["Upscaled 1", "Variation 1", "Sketch 2"]
    await expect(tree.get_by_role("button", name="Sketch 2")).to_contain_text("match 0.75")
    await tree.get_by_role("button", name="Sketch 1").click()
    await expect(visitor.detail.get_by_role("heading", name="Sketch 1")).to_be_visible()


async def test_the_large_view_zooms_and_goes_on_with_the_arrow_keys(visitor):
    await visitor.begin(count=3)
    await visitor.sees_sketches(3)
    await visitor.pick("generate", 0)
    await visitor.act("Full size")
    viewer = visitor.page.locator("#viewer")
    await expect(viewer.get_by_role("heading")).to_have_text("Sketch 1, 32 × 32")
    await visitor.page.keyboard.press("ArrowRight")
    await expect(viewer.get_by_role("heading")).to_have_text("Sketch 2, 32 × 32")
    await visitor.page.keyboard.press("ArrowLeft")
    await visitor.page.keyboard.press("ArrowLeft")
    await expect(viewer.get_by_role("heading")).to_have_text("Sketch 3, 32 × 32")
    fitted = await viewer.locator("output").inner_text()
    await visitor.page.keyboard.press("1")
    await expect(viewer.locator("output")).to_have_text("100 %")
    await viewer.locator("img").hover()
    await visitor.page.mouse.wheel(0, -400 * math.log(2))
    await expect(viewer.locator("output")).to_have_text("200 %")
    await visitor.page.keyboard.press("0")
    await expect(viewer.locator("output")).to_have_text(fitted)
    await visitor.page.keyboard.press("Escape")
    await expect(viewer).to_be_hidden()
    await expect(visitor.detail.get_by_role("heading", name="Sketch 3")).to_be_visible()


async def in_order(visitor, stages, count: int) -> None:
    """Sketches that are finished, and so scored, one after another."""
    stages.hold(stages.generator, *range(count))
    await visitor.begin(count=count)
    for index in range(count):
        stages.generator.gates[index].set()
        await visitor.sees_sketches(index + 1)


async def test_scores_are_named_explained_and_the_best_is_marked(visitor, stages):
    stages.refiner.rank_answer = [0.25, 0.75]
    await in_order(visitor, stages, 2)
    await expect(visitor.sketches.locator(".badge")).to_have_text(["match 0.25", "best match 0.75"])
    await visitor.pick("generate", 1)
    await expect(visitor.detail.locator(".best-pill")).to_be_visible()
    await visitor.detail.get_by_text("Match with the prompt: 0.75").click()
    await expect(visitor.detail).to_contain_text("It does not judge beauty")


async def test_a_blank_picture_is_never_the_best(visitor, stages):
    stages.generator.blank = {1}
    stages.refiner.rank_answer = [0.25, 0.75, 0.5]
    await in_order(visitor, stages, 3)
    await expect(visitor.sketches.locator(".badge")).to_have_text(["match 0.25", "blank", "best match 0.50"])


async def test_a_finished_picture_is_one_click_away(visitor):
    await visitor.page.get_by_label("A finished picture").check()
    await visitor.begin(count=2)
    await expect(visitor.facts).to_contain_text("Done")
    await expect(visitor.detail.get_by_role("heading", name="Upscaled 1")).to_be_visible()


async def test_several_are_upscaled_at_once(visitor, stages):
    await visitor.begin(count=4)
    await visitor.sees_sketches(4)
    for place in (0, 1, 3):
        await visitor.sketches.nth(place).hover()
        await visitor.sketches.nth(place).get_by_role("checkbox").check()
    bar = visitor.page.get_by_role("group", name="With the chosen ones")
    await expect(bar).to_contain_text("3 chosen")
    await bar.get_by_role("button", name="Upscale").click()
    await visitor.sees("upscale", 3)
    await expect(bar).to_be_hidden()
    # The one that is upscaled already is upscaled once more, in a run of its own.
    await visitor.pick("upscale", 0)
    await visitor.act("Upscale ×4")
    await expect(visitor.page.locator(f".group[data-stage=upscale] {READY}")).to_have_count(1)
    await expect(visitor.page.locator("#tree")).to_contain_text("Your picture")


async def test_a_cancelled_run_is_shown_as_such_keeps_what_it_has_and_its_hints_stay_true(visitor, stages):
    stages.hold(stages.generator, 1)
    await visitor.begin(count=2)
    await visitor.sees_sketches(1)
    await visitor.page.locator("#run-cancel").click()
    await expect(visitor.facts).to_contain_text("Cancelled")
    await expect(visitor.facts).not_to_contain_text("left")
    await expect(visitor.facts).not_to_contain_text("queue")
    await expect(visitor.page.locator("#run-cancel")).to_be_hidden()
    await expect(visitor.page.locator("#run-progress")).to_be_hidden()
    await expect(visitor.sketches.nth(1)).to_contain_text("cancelled")
    await visitor.pick("generate", 1)
    await expect(visitor.detail).to_contain_text("Sketch 2 was cancelled.")
    await visitor.sees_sketches(1)


async def test_a_picture_that_fails_explains_why_and_can_be_made_again(visitor, stages):
    failure = StageEvent.ImageFailure(
        index=1, reason="DEVICE_OOM", message="10.0.0.7:50051 has no memory left"
    )
    stages.generator.failures[1] = failure
    await visitor.begin(count=3, seed=100)
    await visitor.sees_sketches(2)
    await visitor.pick("generate", 1)
    await expect(visitor.detail).to_contain_text("Sketch 2 failed. The machine ran out of memory")
    await expect(visitor.detail).not_to_contain_text("10.0.0.7")
    stages.generator.failures.clear()
    await visitor.act("Make it again")
    await visitor.sees_sketches(1)
    await expect(visitor.facts).to_contain_text("seed 101")


async def test_a_place_in_the_queue_is_shown(visitor, stages):
    stages.generator.queue_position = 3
    stages.hold(stages.generator, 0)
    await visitor.begin(count=1)
    await expect(visitor.facts).to_contain_text("place 3 in the queue")
    stages.let_go(stages.generator)
    await visitor.sees_sketches(1)
    await expect(visitor.facts).not_to_contain_text("queue")


async def test_the_time_that_is_left_is_measured_from_the_progress(visitor):
    seconds = await visitor.page.evaluate(
        """async () => {
            const { ProgressRate } = await import("./web/eta.js");
            const rate = new ProgressRate();
            const told = [rate.secondsFor(2)];
            for (let second = 0; second <= 8; second++) rate.note("generate", second * 1000, second / 4);
            told.push(rate.secondsFor(2));
            rate.note("refine", 9000, 2);
            told.push(rate.secondsFor(2));
            return told;
        }"""
    )
    assert seconds == [None, 8, None]


async def test_a_page_that_lacks_a_file_reports_it(browser, gateway):
    visitor = await open_page(browser, gateway.url)
    await visitor.page.route("**/web/labels.js", lambda route: route.abort())
    await visitor.page.goto(gateway.url)
    await expect(visitor.page.get_by_text("The page did not load as a whole")).to_be_visible()
