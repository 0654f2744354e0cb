"""What a person does at the page, from a prompt to a file."""

import math
import re

from PIL import Image
from playwright.async_api import expect

from tests.web.visitor import open_page
from triptych.v1.stage_pb2 import StageEvent
from triptych.vocabulary import unknown_words


async def test_a_prompt_becomes_a_file_through_two_choices(visitor):
    await visitor.begin("a red house by the sea", count=3, seed=100)
    await visitor.sees_sketches(3)
    await visitor.refine(1)
    await visitor.choose(2)
    await visitor.enlarge()
    async with visitor.page.expect_download() as downloading:
        await visitor.button("Download").click()
    download = await downloading.value
    assert download.suggested_filename == "a-red-house-by-the-sea-upscale-0.png"
    with Image.open(await download.path()) as picture:
        assert picture.size == (128, 128)
        assert picture.text["prompt"] == "a red house by the sea"
        assert picture.text["parent"] == "refine-2"


async def test_a_sketch_is_seen_before_it_is_ready(visitor, stages):
    stages.hold(stages.generator, 0, 1)
    await visitor.begin(count=2)
    blurred = visitor.page.locator("#panel-generate .card[data-state=working] img")
    await expect(blurred.first).to_be_visible()
    assert await blurred.first.evaluate("img => getComputedStyle(img).filter") != "blur(0px)"
    stages.let_go(stages.generator)
    await visitor.sees_sketches(2)
    await expect(visitor.sketches.first.locator("img")).to_have_css("filter", "blur(0px)")


async def test_a_variation_is_compared_with_its_sketch(visitor):
    await visitor.begin(count=1)
    await visitor.refine(0)
    await visitor.choose(0)
    line = visitor.page.get_by_role("slider", name="Compare with its sketch 1")
    await line.fill("50")
    after = visitor.easel.locator("img.after")
    await expect(after).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
    await expect(visitor.easel.locator("img.before")).to_be_visible()


async def test_going_back_to_another_sketch_is_one_click(visitor):
    await visitor.begin(count=2)
    await visitor.refine(0)
    await visitor.refine(1)
    await visitor.page.locator("#tree").get_by_role("button", name="Sketch 1").click()
    await expect(visitor.sketches.nth(0).get_by_role("button")).to_have_attribute("aria-current", "true")
    await expect(visitor.page.locator("#panel-refine .card[data-name=refine-0]")).to_be_visible()
    await expect(visitor.page.locator("#panel-refine .card[data-name=refine-6]")).to_have_count(0)


async def test_the_tree_shows_what_came_of_what(visitor):
    await visitor.begin(count=2)
    await visitor.refine(1)
    await visitor.choose(0)
    await visitor.enlarge()
    tree = visitor.page.locator("#tree .branches")
    chain = tree.locator(
        "> li > button[aria-label^='Sketch 2'] + ul > li > button[aria-label^='Variation 1'] + ul"
    )
    await expect(chain.get_by_role("button", name="Enlargement 1")).to_be_visible()


async def test_a_picture_is_looked_at_in_full_size(visitor):
    await visitor.begin(count=1)
    await visitor.refine(0)
    await visitor.choose(0)
    await visitor.button("Full size").click()
    viewer = visitor.page.get_by_role("dialog", name="Variation 1, 32 × 32")
    await viewer.locator("img").hover()
    fitted = await viewer.locator("output").inner_text()
    await visitor.page.keyboard.press("1")
    await expect(viewer.locator("output")).to_have_text("100 %")
    await visitor.page.mouse.wheel(0, -400 * math.log(2))
    await expect(viewer.locator("output")).to_have_text("200 %")
    await visitor.page.keyboard.press("0")
    await expect(viewer.locator("output")).to_have_text(fitted)
    await visitor.page.keyboard.press("Escape")
    await expect(viewer).to_be_hidden()


async def test_scores_are_shown_and_the_best_is_named(visitor, stages):
    stages.refiner.rank_answer = [0.25, 0.75]
    await visitor.begin(count=2)
    await expect(visitor.sketches.locator(".badge")).to_have_text(["0.25", "0.75"])
    await expect(visitor.sketches.nth(1).get_by_role("button")).to_have_accessible_name(
        "Sketch 2: a red house, score 0.75, the best. Refine it"
    )


async def test_clip_chooses_where_it_is_asked_to(visitor):
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("CLIP does").check()
    await visitor.begin(count=2)
    await expect(visitor.easel.locator("figcaption")).to_contain_text("128 × 128")
    await expect(visitor.facts).to_contain_text("Done")
    await expect(visitor.sketches.first.locator(".badge")).to_have_text("0.00")


async def test_a_cancelled_run_says_so_and_keeps_what_it_has(visitor, stages):
    stages.hold(stages.generator, 1)
    await visitor.begin(count=2)
    await visitor.sees_sketches(1)
    await visitor.button("Cancel").click()
    await expect(visitor.facts).to_contain_text("Cancelled")
    await expect(visitor.sketches.nth(1)).to_contain_text("cancelled")
    await visitor.sees_sketches(1)


async def test_a_sketch_that_fails_says_so_and_the_others_stay(visitor, stages):
    failure = StageEvent.ImageFailure(index=1, reason="DEVICE_OOM", message="the device has no memory left")
    stages.generator.failures[1] = failure
    await visitor.begin(count=3)
    await visitor.sees_sketches(2)
    await expect(visitor.sketches.nth(1)).to_contain_text("failed")
    await expect(visitor.facts).to_contain_text("Waiting for your choice")


async def test_what_is_wrong_with_a_setting_is_said_in_words(visitor):
    visitor.expected.append("400")
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("Top p").fill("1e-9")
    await visitor.page.get_by_label("Steps").fill("")
    await visitor.page.locator("#generate-temperature").fill("99999")
    await visitor.page.locator("#ask").evaluate("form => { form.noValidate = true; }")
    await visitor.begin()
    await expect(visitor.trouble).to_contain_text("temperature")


async def test_words_that_the_model_does_not_know_are_named(visitor):
    await visitor.page.get_by_label("What should the picture show?").fill("two red dragons by the sea")
    await expect(visitor.page.locator("#unknown")).to_contain_text("“two”, “dragons”")
    await visitor.page.get_by_label("What should the picture show?").fill("a red house by the sea")
    await expect(visitor.page.locator("#unknown")).to_have_text("")


PROMPTS = [
    "two red dragons by the sea",
    "Häuser, 3 RED houses; houses' pine-trees!",
    "a_b l'été Ünder the full moons",
    "\u795e\u793e and \u0928\u092e\u0938\u094d\u0924\u0947",
    "",
]


async def test_the_page_and_the_command_line_find_the_same_words(visitor):
    known = ["house", "full moon", "pine tree", "red", "sea"]
    found = await visitor.page.evaluate(
        """async ([prompts, known]) => {
            const { unknownWords } = await import("./web/vocabulary.js");
            return prompts.map((prompt) => unknownWords(prompt, known));
        }""",
        [PROMPTS, known],
    )
    assert found == [unknown_words(prompt, known) for prompt in PROMPTS]


async def test_an_example_is_a_click_away_and_those_it_knows_come_first(visitor):
    examples = visitor.page.get_by_role("group", name="Example prompts").get_by_role("button")
    texts = await examples.all_inner_texts()
    assert texts == ["a red house by the sea", "a blue house under a full moon", "a gorgeous blurgh"]
    await examples.nth(1).click()
    await expect(visitor.page.get_by_label("What should the picture show?")).to_have_value(texts[1])


async def test_the_vocabulary_is_shown_by_kind_and_its_words_can_be_clicked(visitor):
    await visitor.button("What it understands").click()
    await visitor.page.locator("#vocabulary").get_by_role("button", name="pine tree").click()
    await expect(visitor.page.get_by_label("What should the picture show?")).to_have_value("pine tree")
    await expect(visitor.page.locator("#vocabulary dt")).to_have_text(["objects", "colours", "places"])


async def test_a_past_run_is_opened_and_deleted(visitor):
    await visitor.begin("a blue house", count=1)
    await visitor.sees_sketches(1)
    await visitor.button("End this run").click()
    await expect(visitor.facts).to_contain_text("Cancelled")
    await visitor.page.get_by_role("link", name="Triptych: a new picture").click()
    await expect(visitor.sketches).to_have_count(0)
    past = visitor.page.get_by_role("region", name="Past runs")
    await past.get_by_role("link", name=re.compile("a blue house")).click()
    await visitor.sees_sketches(1)
    await visitor.button("Delete the run “a blue house”").click()
    await visitor.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(past.get_by_role("link")).to_have_count(0)
    await expect(visitor.sketches).to_have_count(0)


async def test_a_run_that_waits_for_a_choice_can_be_deleted(visitor):
    visitor.expected.append("400")  # the gateway deletes no run that is under way: it is ended first
    await visitor.begin("a blue house", count=1)
    await visitor.sees_sketches(1)
    await visitor.button("Delete the run “a blue house”").click()
    await visitor.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(visitor.page.get_by_role("region", name="Past runs").get_by_role("link")).to_have_count(0)
    await expect(visitor.trouble).to_be_empty()


async def test_a_page_that_lacks_a_file_says_so(browser, gateway):
    visitor = await open_page(browser, gateway.url)
    await visitor.page.route("**/web/labels.js", lambda route: route.abort())
    await visitor.page.goto(gateway.url)
    await expect(visitor.page.get_by_text("The page did not load as a whole")).to_be_visible()


async def test_a_place_in_the_queue_is_told(visitor, stages):
    stages.generator.queue_position = 3
    stages.hold(stages.generator, 0)
    await visitor.begin(count=1)
    await expect(visitor.facts).to_contain_text("place 3 in the queue")
    stages.let_go(stages.generator)
    await visitor.sees_sketches(1)
    await expect(visitor.facts).not_to_contain_text("queue")


async def test_the_time_that_is_left_is_measured_from_the_pace(visitor):
    seconds = await visitor.page.evaluate(
        """async () => {
            const { ProgressRate } = await import("./web/eta.js");
            const pace = new ProgressRate();
            const told = [pace.secondsFor(2)];
            for (let second = 0; second <= 8; second++) pace.note("generate", second * 1000, second / 4);
            told.push(pace.secondsFor(2));
            pace.note("refine", 9000, 2);
            told.push(pace.secondsFor(2));
            return told;
        }"""
    )
    assert seconds == [None, 8, None]


async def test_the_settings_travel_with_the_run(visitor, stages):
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("Temperature").fill("0.7")
    await visitor.page.get_by_label("Variations", exact=True).fill("2")
    await visitor.page.get_by_label("Without").fill("clouds")
    await visitor.begin(count=1, seed=2**64 - 1)
    await visitor.refine(0, count=2)
    assert stages.generator.requests[0].settings.temperature == 0.7
    assert stages.generator.requests[0].images[0].seed == 2**64 - 1
    assert {one.settings.negative_prompt for one in stages.refiner.requests} == {"clouds"}
