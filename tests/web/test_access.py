"""The page for everybody: by keyboard and touch, with a screen reader, at every width, in the dark, without movement."""

import pytest
from playwright.async_api import expect

from tests.web.audit import SCHEMES, WIDTHS, audit, overflow
from tests.web.visitor import open_page

NAME_OF_FOCUSED = """() => {
    const one = document.activeElement;
    if (one === document.body) return "";
    const label = one.getAttribute("aria-label") ?? one.labels?.[0]?.innerText;
    return [label, one.querySelector("img")?.alt, one.innerText].filter(Boolean).join(" ");
}"""


async def whole_loop(visitor) -> None:
    await visitor.begin(count=3)
    await visitor.sees_sketches(3)
    await visitor.refine(0)
    await visitor.pick("refine", 0)
    await visitor.upscale()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
async def test_axe_finds_nothing_wrong_and_nothing_leaves_the_screen(browser, gateway, width, scheme):
    visitor = await open_page(
        browser,
        gateway.url,
        color_scheme=scheme,
        viewport={"width": width, "height": 860},
        has_touch=width < 1000,
        # Colours are judged when they are there, not on their way.
        reduced_motion="reduce",
    )
    await visitor.arrive()

    async def is_fine() -> None:
        assert await audit(visitor.page) == []
        assert await overflow(visitor.page) == []

    await visitor.button("Settings").click()
    await visitor.page.locator("#vocabulary summary").click()
    await is_fine()
    await visitor.button("Settings").click()
    await whole_loop(visitor)
    await is_fine()
    await visitor.act("Full size")
    await is_fine()
    await visitor.page.keyboard.press("Escape")
    await visitor.act("Edit a part")
    await is_fine()
    await visitor.page.keyboard.press("Escape")
    await visitor.shows_runs()
    await expect(visitor.runs).to_have_count(1)
    await visitor.runs.get_by_role("checkbox").check(force=True)
    await is_fine()
    assert visitor.unexpected == []


async def test_axe_finds_nothing_wrong_while_pictures_are_made_and_fail(visitor, stages):
    stages.generator.errors[2] = RuntimeError("broken")
    stages.hold(stages.generator, 1)
    await visitor.begin(count=3)
    await visitor.sees_sketches(1)
    await expect(visitor.sketches.nth(2)).to_contain_text("failed")
    await visitor.prompt.fill("a blue house")
    await visitor.button("Make pictures").click()
    await expect(visitor.page.get_by_role("heading", name="Up next (1)")).to_be_visible()
    await visitor.page.evaluate(
        "() => document.getAnimations().forEach((one) => one.finish === undefined || one.effect.getTiming().iterations === Infinity || one.finish())"
    )
    assert await audit(visitor.page) == []


async def test_everything_can_be_done_with_the_keyboard_alone(visitor):
    keyboard = visitor.page.keyboard

    async def tab_to(name: str) -> None:
        for _ in range(120):
            await keyboard.press("Tab")
            if name in await visitor.page.evaluate(NAME_OF_FOCUSED):
                return
        raise AssertionError(f"the tab key does not lead to {name!r}")

    await tab_to("What should the picture show?")
    await keyboard.type("a red house")
    await keyboard.press("Enter")
    await visitor.sees_sketches(8)
    await tab_to("Sketch 1: a red house")
    await keyboard.press("ArrowRight")
    await keyboard.press("Enter")
    await expect(visitor.detail.get_by_role("heading", name="Sketch 2")).to_be_visible()
    await tab_to("Refine")
    await keyboard.press("Enter")
    await visitor.sees("refine", 4)
    await tab_to("Compare with sketch 2")
    await keyboard.press("End")
    await expect(visitor.detail.locator("img.after")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    await tab_to("Upscale ×4")
    await keyboard.press("Enter")
    await expect(visitor.detail.locator(".facts")).to_contain_text("128 × 128")
    await tab_to("Full size")
    await keyboard.press("Enter")
    await expect(visitor.page.locator("#viewer")).to_be_visible()
    await keyboard.press("+")
    await keyboard.press("ArrowLeft")
    await keyboard.press("Escape")
    await expect(visitor.button("Full size")).to_be_focused()


async def test_everything_can_be_done_by_touch(browser, gateway):
    visitor = await open_page(
        browser, gateway.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    await visitor.arrive()
    await visitor.prompt.tap()
    await visitor.page.keyboard.type("a red house")
    await visitor.button("Make pictures").tap()
    await visitor.sees_sketches(8)
    await visitor.sketches.nth(1).locator(".face").tap()
    await expect(visitor.button("Refine")).to_be_in_viewport()
    await visitor.button("Refine").tap()
    await visitor.sees("refine", 4)
    await visitor.button("Upscale ×4").tap()
    await visitor.sees("upscale", 1)
    await visitor.button("Full size").tap()
    await visitor.page.locator("#viewer").get_by_role("button", name="Next picture").tap()
    await expect(visitor.page.locator("#viewer").get_by_role("heading")).to_contain_text("Variation 1")
    await visitor.page.locator("#viewer").get_by_role("button", name="Close").tap()
    await visitor.page.get_by_role("link", name="Runs").tap()
    await visitor.runs.get_by_role("checkbox").tap()
    await expect(visitor.page.get_by_text("1 chosen")).to_be_visible()
    sizes = await visitor.page.evaluate(
        "() => [...document.querySelectorAll('main button')].filter((one) => one.checkVisibility())"
        ".map((one) => [one.innerText, one.offsetWidth, one.offsetHeight])"
    )
    # WCAG 2.2, 2.5.8.
    assert [one for one in sizes if min(one[1:]) < 24] == []
    assert visitor.unexpected == []


async def test_the_focus_stays_where_it_is_while_pictures_come(visitor, stages):
    stages.hold(stages.generator, 0, 1)
    await visitor.begin(count=2)
    button = visitor.sketches.first.locator(".face")
    await expect(visitor.page.locator(".card[data-state=working] img:visible")).to_have_count(2)
    await button.focus()
    stages.let_go(stages.generator)
    await visitor.sees_sketches(2)
    await expect(button).to_be_focused()


async def test_pictures_are_described_by_the_prompt(visitor):
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    await expect(visitor.sketches.get_by_alt_text("Sketch 1: a red house")).to_be_visible()


async def test_news_are_announced_politely(visitor):
    await visitor.begin(count=2)
    announced = visitor.page.locator("#announcements")
    await expect(announced).to_have_attribute("aria-live", "polite")
    await expect(announced).to_contain_text("The sketches are ready")


async def test_nothing_leaves_the_smallest_screen(browser, gateway):
    visitor = await open_page(browser, gateway.url, viewport={"width": 320, "height": 640})
    await visitor.arrive()
    await whole_loop(visitor)
    assert await overflow(visitor.page) == []


async def test_nothing_moves_for_those_who_ask_for_it(browser, gateway, stages):
    visitor = await open_page(browser, gateway.url, reduced_motion="reduce")
    await visitor.arrive()
    stages.hold(stages.generator, 0)
    await visitor.begin(count=1)
    image = visitor.page.locator(".card[data-state=working] img")
    await expect(image).to_be_visible()
    style = "getComputedStyle(one)"
    assert await image.evaluate(f"one => [{style}.transitionDuration, {style}.animationName]") == [
        "0s",
        "none",
    ]


async def test_what_is_chosen_is_seen_where_colours_are_forced(browser, gateway):
    visitor = await open_page(browser, gateway.url, forced_colors="active")
    await visitor.arrive()
    await visitor.begin(count=1)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await expect(visitor.sketches.first.locator(".face")).to_have_css("outline-style", "solid")


@pytest.mark.parametrize("width", [360, 1280])
async def test_the_page_speaks_chinese(browser, gateway, width):
    visitor = await open_page(
        browser, gateway.url, viewport={"width": width, "height": 800}, reduced_motion="reduce"
    )
    await visitor.arrive()
    await visitor.prompt.fill("a red house")
    await visitor.button("中文").click()
    await expect(visitor.page.get_by_role("heading", name="用文字生成图像")).to_be_attached()
    assert await visitor.page.evaluate("() => document.documentElement.lang") == "zh"
    await expect(visitor.page.get_by_label("你想画什么？")).to_have_value("a red house")
    await visitor.button("生成图像").click()
    await visitor.sees_sketches(8)
    await expect(visitor.facts).to_contain_text("已就绪")
    await visitor.sketches.first.locator(".face").click()
    await visitor.button("细化").click()
    await visitor.sees("refine", 4)
    # No English is left, but for the prompt, names and the licence.
    shown = await visitor.page.locator("#detail, #run-actions, .choices").all_inner_texts()
    assert not [
        word
        for text in shown
        for word in text.split()
        if word.isascii() and word.isalpha() and word != "scripted"
    ]
    assert await audit(visitor.page) == []
    assert await overflow(visitor.page) == []
    assert visitor.unexpected == []


async def test_every_text_has_both_languages_and_the_same_blanks(visitor):
    faults = await visitor.page.evaluate(
        """async () => {
            const source = await (await fetch("web/texts.js")).text();
            const table = [...source.matchAll(/^  "([\\w.-]+)": \\["((?:[^"\\\\]|\\\\.)*)", "((?:[^"\\\\]|\\\\.)*)"\\],$/gm)];
            const blanks = (text) => [...new Set([...text.matchAll(/\\{(\\w+)\\}/g)].map((one) => one[1]))].sort().join();
            return { count: table.length, wrong: table.filter(([, , en, zh]) => !zh || blanks(en) !== blanks(zh)).map((one) => one[1]) };
        }"""
    )
    assert faults["wrong"] == []
    assert faults["count"] > 300
