"""The page for everybody: by keyboard, with a screen reader, on a small screen, in the dark, without movement."""

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.web.visitor import open_page

AXE = {"resultTypes": ["violations"]}
NAME_OF_FOCUSED = """() => {
    const one = document.activeElement;
    const label = one.getAttribute("aria-label") ?? one.labels?.[0]?.innerText;
    return [label, one.querySelector("img")?.alt, one.innerText].filter(Boolean).join(" ");
}"""


async def audit(page) -> list[str]:
    """What axe-core finds wrong, in lines."""
    # Playwright may do what the page's own policy forbids it: run a script that comes as a text.
    results = await Axe().run(page, options=AXE)
    return [
        f"{found['id']}: {node['html'][:120]}"
        for found in results.response["violations"]
        for node in found["nodes"]
    ]


async def whole_loop(visitor) -> None:
    await visitor.begin(count=3)
    await visitor.sees_sketches(3)
    await visitor.refine(0)
    await visitor.choose(0)
    await visitor.enlarge()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_wrong(browser, gateway, scheme):
    visitor = await open_page(browser, gateway.url, color_scheme=scheme)
    await visitor.arrive()
    await visitor.button("Settings").click()
    await visitor.button("What it understands").click()
    assert await audit(visitor.page) == []
    await whole_loop(visitor)
    assert await audit(visitor.page) == []
    await visitor.button("Full size").click()
    assert await audit(visitor.page) == []


async def test_axe_finds_nothing_wrong_while_pictures_are_made_and_fail(visitor, stages):
    stages.generator.errors[2] = RuntimeError("broken")
    stages.hold(stages.generator, 1)
    await visitor.begin(count=3)
    await visitor.sees_sketches(1)
    await expect(visitor.sketches.nth(2)).to_contain_text("failed")
    assert await audit(visitor.page) == []


async def test_everything_can_be_done_with_the_keyboard_alone(visitor):
    keyboard = visitor.page.keyboard

    async def tab_to(name: str) -> None:
        for _ in range(80):
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
    await visitor.sees_variations(6)
    await expect(visitor.sketches.nth(1).get_by_role("button")).to_have_attribute("aria-current", "true")
    await tab_to("Variation 1: a red house")
    await keyboard.press("Enter")
    await tab_to("Compare with its sketch 2")
    await keyboard.press("End")
    await expect(visitor.easel.locator("img.after")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    await tab_to("Enlarge ×4")
    await keyboard.press("Enter")
    await expect(visitor.easel.locator("figcaption")).to_contain_text("128 × 128")
    await tab_to("Full size")
    await keyboard.press("Enter")
    await expect(visitor.page.locator("#viewer")).to_be_visible()
    await keyboard.press("+")
    await keyboard.press("ArrowLeft")
    await keyboard.press("Escape")
    await expect(visitor.button("Full size")).to_be_focused()


async def test_the_focus_stays_where_it_is_while_pictures_come(visitor, stages):
    stages.hold(stages.generator, 0, 1)
    await visitor.begin(count=2)
    button = visitor.sketches.first.get_by_role("button")
    await expect(visitor.page.locator(".card[data-state=working] img:visible")).to_have_count(2)
    await button.focus()
    stages.let_go(stages.generator)
    await visitor.sees_sketches(2)
    await expect(button).to_be_focused()


async def test_pictures_are_described_by_the_prompt(visitor):
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    await expect(visitor.page.get_by_alt_text("Sketch 1: a red house")).to_be_visible()


async def test_news_are_told_politely(visitor):
    await visitor.begin(count=2)
    said = visitor.page.locator("#said")
    await expect(said).to_have_attribute("aria-live", "polite")
    await expect(said).to_contain_text("Ready: choose a sketch")


@pytest.mark.parametrize("width", [320, 768])
async def test_nothing_leaves_a_small_screen(browser, gateway, width):
    visitor = await open_page(browser, gateway.url, viewport={"width": width, "height": 640})
    await visitor.arrive()
    await visitor.button("Settings").click()
    await visitor.button("What it understands").click()
    await whole_loop(visitor)
    assert await visitor.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert await audit(visitor.page) == []
    assert visitor.unexpected == []


async def test_a_finger_s_targets_are_large_enough_on_a_phone(browser, gateway):
    visitor = await open_page(browser, gateway.url, viewport={"width": 320, "height": 640}, has_touch=True)
    await visitor.arrive()
    await whole_loop(visitor)
    sizes = await visitor.page.evaluate(
        "() => [...document.querySelectorAll('main button')].filter((one) => one.offsetParent)"
        ".map((one) => [one.innerText, one.offsetWidth, one.offsetHeight])"
    )
    # WCAG 2.2, 2.5.8.
    assert [one for one in sizes if min(one[1:]) < 24] == []


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
    await visitor.refine(0)
    chosen = visitor.sketches.first.get_by_role("button")
    await expect(chosen).to_have_css("outline-style", "solid")
