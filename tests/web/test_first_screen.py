"""What somebody sees who comes for the first time."""

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.web.audit import audit
from tests.web.gateway_process import GatewayProcess
from tests.web.visitor import open_page
from triptych.v1.stage_pb2 import PromptReading, WordReplacement
from triptych.vocabulary import unknown_words


@pytest_asyncio.fixture(loop_scope="module")
async def exampled_gateway(stages, tmp_path):
    """A gateway that makes pictures of the models' example prompts."""
    gateway = GatewayProcess(tmp_path, stages.options, has_examples=True)
    await gateway.start()
    yield gateway
    await gateway.kill()


async def test_examples_come_with_pictures_of_the_served_model_and_are_kept(
    browser, exampled_gateway, stages
):
    visitor = await open_page(browser, exampled_gateway.url)
    await visitor.arrive()
    examples = visitor.page.locator("#welcome .example")
    await expect(examples.locator("img")).to_have_count(3)
    assert await examples.all_inner_texts() == [
        "a red house by the sea",
        "a blue house under a full moon",
        "a gorgeous blurgh",
    ]
    # Each stage of one finished run, from its sketches to one upscaled picture.
    await expect(visitor.page.locator("#welcome .tour-stage")).to_have_count(3)
    await expect(visitor.page.locator("#welcome .tour-stage").first.locator("img")).to_have_count(4)
    await expect(visitor.page.locator("#welcome .tour-stage").last.locator("img")).to_have_count(1)
    sizes = await visitor.page.locator("#welcome .tour-stage img").evaluate_all(
        "async (all) => { await Promise.all(all.map((one) => { one.loading = 'eager'; return one.decode(); })); return all.map((one) => one.naturalWidth); }"
    )
    assert sizes == [32] * 8 + [128]
    assert await audit(visitor.page) == []
    asked = len(stages.generator.requests)
    await exampled_gateway.kill()
    await exampled_gateway.start()
    again = await open_page(browser, exampled_gateway.url)
    await again.arrive()
    await expect(again.page.locator("#welcome .example img")).to_have_count(3)
    assert len(stages.generator.requests) == asked
    await again.shows_runs()
    await expect(again.page.get_by_text("Nothing yet.")).to_be_visible()
    assert visitor.other_hosts == again.other_hosts == []


async def test_a_click_on_an_example_fills_the_form_and_spends_nothing(visitor, stages):
    examples = visitor.page.locator("#welcome .example")
    await examples.nth(1).click()
    await expect(visitor.prompt).to_have_value("a blue house under a full moon")
    await expect(visitor.prompt).to_be_focused()
    assert stages.generator.requests == []


async def test_there_are_no_empty_boxes_before_the_first_run(visitor):
    for empty in ("#studio", "#queue", "#runs", "#gallery", "#detail", "#tree"):
        await expect(visitor.page.locator(empty)).to_be_hidden()
    boxes = await visitor.page.locator("main *").evaluate_all(
        """all => all.filter((one) => one.checkVisibility() && one.offsetHeight > 60 && !one.innerText.trim()
            && !one.querySelector("img, input, textarea") && !one.matches("img, input, textarea, svg, svg *"))
            .map((one) => one.outerHTML.slice(0, 80))"""
    )
    assert boxes == []


async def test_words_that_the_model_does_not_know_are_named_while_typing(visitor, stages):
    check = visitor.page.locator("#word-check")
    await visitor.prompt.fill("two red dragons by the sea")
    await expect(check).to_contain_text("does not know “two” and “dragons” and will ignore them")
    await visitor.prompt.fill("a red house by the sea")
    await expect(check).to_be_empty()
    await visitor.prompt.fill("a dragon")
    await expect(check).to_contain_text("knows none of these words")
    await check.get_by_role("button", name="Show the words it knows").click()
    await expect(visitor.page.get_by_label("Search the words")).to_be_focused()
    assert stages.generator.requests == []


async def test_words_that_are_replaced_are_reported_with_what_is_drawn(visitor):
    found = await visitor.page.evaluate(
        """async () => {
            const { checkWords } = await import("./web/vocabulary.js");
            const model = { vocabulary: { objects: { words: ["cat"] } } };
            const reading = { replacements: [{ word: "Kitten", replacement: "cat" }] };
            const unknown = { is_unknown: true, prompt: "a red house", suggestions: ["a cat"] };
            const pair = { replacements: [{ word: "a couple of", replacement: "two" }, { word: "hot dog", replacement: "apple" }] };
            return [
                checkWords("a kitten", model, reading), checkWords("a blurgh kitten", model, reading),
                checkWords("blurgh", {}), checkWords("blurgh", model, unknown),
                checkWords("a couple of cats with a hot dog", model, pair),
            ];
        }"""
    )
    told = {"ignored": [], "isHopeless": False, "suggestions": [], "drawn": ""}
    another = {"isHopeless": True, "suggestions": ["a cat"], "drawn": "a red house"}
    assert found == [
        {**told, "replaced": [["kitten", "cat"]]},
        {**told, "replaced": [["kitten", "cat"]], "ignored": ["blurgh"]},
        {**told, "replaced": []},
        {**another, "replaced": [], "ignored": ["blurgh"]},
        {**told, "replaced": [["a couple of", "two"], ["hot dog", "apple"]]},
    ]


async def test_the_gateway_s_table_of_words_is_asked_while_typing(visitor, stages):
    kitten = PromptReading(
        prompt="a house", replacements=[WordReplacement(word="kitten", replacement="house")]
    )
    unknown = PromptReading(prompt="a red house", is_unknown=True, suggestions=["a red house"])
    stages.generator.readings.update({"a kitten": kitten, "blurgh": unknown})
    check = visitor.page.locator("#word-check")
    await visitor.prompt.fill("a kitten")
    await expect(check).to_contain_text("“kitten” is drawn as “house”")
    await expect(check).not_to_contain_text("ignore")
    await visitor.prompt.fill("blurgh")
    await expect(check).to_contain_text("draws “a red house” instead")
    await expect(check).to_contain_text("triptych weights pull mini")
    await check.get_by_role("button", name="a red house").click()
    await expect(visitor.prompt).to_have_value("a red house")
    assert stages.generator.requests == []


async def test_a_run_reports_what_is_drawn_for_its_prompt_also_after_a_reload(visitor, stages):
    reading = PromptReading(prompt="a house", replacements=[WordReplacement(word="hut", replacement="house")])
    stages.generator.readings["a hut"] = reading
    await visitor.prompt.fill("a hut")
    await visitor.prompt.press("Enter")
    facts = visitor.page.locator("#run-facts")
    await expect(facts).to_contain_text("drawn as “a house”")
    await visitor.page.reload()
    await expect(facts).to_contain_text("drawn as “a house”")


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


async def test_the_vocabulary_is_folded_has_objects_first_and_can_be_searched(visitor):
    vocabulary = visitor.page.locator("#vocabulary")
    await expect(vocabulary.locator("dl")).to_be_hidden()
    await vocabulary.get_by_text("Words this model knows (6)").click()
    await expect(vocabulary.locator("dt")).to_have_text(["objects", "colours", "places"])
    await visitor.page.get_by_label("Search the words").fill("pine")
    await expect(vocabulary.locator(".word:visible")).to_have_text(["pine tree"])
    await vocabulary.get_by_role("button", name="pine tree").click()
    await expect(visitor.prompt).to_have_value("pine tree")
    await visitor.page.get_by_label("Search the words").fill("dragon")
    await expect(vocabulary).to_contain_text("“dragon” is not among them.")


async def test_the_foot_has_the_server_s_state_version_help_and_licence(visitor):
    foot = visitor.page.locator("#foot")
    await expect(foot).to_contain_text("Ready · models: scripted")
    await expect(foot).to_contain_text("Apache License 2.0")
    await expect(foot.locator("#version")).to_contain_text("Triptych 0.")
    await foot.get_by_role("button", name="Help").click()
    dialog = visitor.page.get_by_role("dialog", name="Help")
    await expect(dialog).to_contain_text("earlier prompts")
    assert await audit(visitor.page) == []
    await visitor.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()


@pytest.mark.parametrize("width", [360, 1280])
async def test_the_prompt_and_its_button_are_on_the_first_screen(browser, gateway, width):
    visitor = await open_page(browser, gateway.url, viewport={"width": width, "height": 640})
    await visitor.arrive()
    await expect(visitor.prompt).to_be_in_viewport()
    await expect(visitor.button("Make pictures")).to_be_in_viewport()
    await expect(visitor.page.locator(".example").first).to_be_in_viewport()
