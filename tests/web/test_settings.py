"""Settings, seeds and prompts: they apply to the next action, show their true values, and outlive a reload."""

import pytest
from playwright.async_api import expect

from tests.web.visitor import open_page


async def test_every_setting_shows_its_true_value_and_travels(visitor, stages):
    page = visitor.page
    await visitor.button("Settings").click()
    await expect(page.get_by_label("Variety", exact=True)).to_have_value("0.4")
    await expect(page.get_by_label("Refine keeps", exact=True)).to_have_value("0.5")
    await expect(page.get_by_label("Vary keeps", exact=True)).to_have_value("0.25")
    await expect(page.locator("#settings")).to_contain_text("32 × 32 pixels")
    # What the models have no default for is not shown as if it had one.
    await expect(page.locator("#generate-guidance_scale")).to_be_hidden()
    await page.get_by_label("Variety", exact=True).fill("0.7")
    await page.get_by_label("Negative prompt", exact=True).fill("clouds")
    await page.get_by_label("Pictures", exact=True).fill("2")
    await page.get_by_label("Pictures", exact=True).blur()
    await visitor.button("Settings").click()
    await visitor.begin(count=1, seed=2**64 - 1)
    await visitor.sees_sketches(1)
    await visitor.refine(0, count=2)
    assert stages.generator.requests[0].settings.temperature == 0.7
    assert stages.generator.requests[0].images[0].seed == 2**64 - 1
    assert {one.settings.negative_prompt for one in stages.refiner.requests} == {"clouds"}
    # Changed after the sketches were made: it applies to what is made next.
    stages.refiner.requests.clear()
    await visitor.set(refine_count=1, refine_num_steps=8, refine_negative_prompt="")
    await visitor.pick("generate", 0)
    await visitor.act("Refine")
    await visitor.sees("refine", 3)
    (request,) = stages.refiner.requests
    assert (request.settings.num_steps, request.settings.negative_prompt) == (8, "")


async def test_defaults_come_back_one_by_one_and_all_at_once(visitor):
    await visitor.set(generate_temperature=0.9, generate_count=3)
    await expect(visitor.button("Settings: 2 changed")).to_be_visible()
    await visitor.button("Settings").click()
    await visitor.button("Variety: back to the model's default").click()
    await expect(visitor.page.get_by_label("Variety", exact=True)).to_have_value("0.4")
    await visitor.button("Reset all").click()
    await expect(visitor.page.get_by_label("Sketches", exact=True)).to_have_value("8")
    await expect(visitor.page.locator("#settings-button-count")).to_be_hidden()


async def test_presets_are_chosen_and_one_s_own_are_kept(visitor):
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("Preset").select_option("Quick: few pictures")
    await expect(visitor.page.get_by_label("Sketches", exact=True)).to_have_value("4")
    await visitor.page.get_by_label("Sketches", exact=True).fill("5")
    await visitor.page.get_by_label("Sketches", exact=True).blur()
    await visitor.button("Save as preset").click()
    await visitor.button("Reset all").click()
    await visitor.page.reload()
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("Preset").select_option("My preset 1")
    await expect(visitor.page.get_by_label("Sketches", exact=True)).to_have_value("5")


async def test_a_value_that_no_model_means_is_refused_at_the_field(visitor):
    await visitor.button("Settings").click()
    field = visitor.page.get_by_label("Sketches", exact=True)
    await field.fill("99")
    await field.blur()
    assert not await field.evaluate("field => field.checkValidity()")
    await expect(visitor.page.locator("#settings-button-count")).to_be_empty()


async def test_what_the_gateway_refuses_is_said_with_the_field_s_name(visitor):
    visitor.expected.append("400")
    await visitor.page.evaluate(
        """() => {
            const settings = { "generate:scripted": { temperature: 99999 } };
            localStorage.setItem("triptych-settings", JSON.stringify(settings));
        }"""
    )
    await visitor.page.reload()
    await expect(visitor.page.locator("#server-state")).to_contain_text("scripted")
    await visitor.prompt.fill("a red house")
    await visitor.button("Make pictures").click()
    await expect(visitor.errors).to_contain_text("Sketch: Variety must be")
    await expect(visitor.prompt).to_have_value("a red house")


async def test_prompt_and_settings_survive_a_reload_and_the_address_names_the_run(visitor):
    await visitor.begin("a red house", count=2, seed=5)
    await visitor.sees_sketches(2)
    await visitor.pick("generate", 1)
    assert visitor.page.url.endswith("/generate-1")
    await visitor.prompt.fill("a blue house under")
    await visitor.page.reload()
    await expect(visitor.prompt).to_have_value("a blue house under")
    await expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("5")
    await expect(visitor.page.locator("#generate-count")).to_have_value("2")
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    await expect(visitor.detail.get_by_role("heading", name="Sketch 2")).to_be_visible()


async def test_a_finished_picture_ends_at_the_size_that_is_chosen(visitor, stages):
    await visitor.button("Settings").click()
    size = visitor.page.get_by_label("Final size", exact=True)
    await expect(size.locator("option")).to_have_text(["Upscaled (128 × 128)", "Not upscaled (32 × 32)"])
    await expect(visitor.page.get_by_text("can draw no other size or shape").first).to_be_visible()
    await size.select_option("Not upscaled (32 × 32)")
    await visitor.button("Settings").click()
    await visitor.page.get_by_label("A finished picture").check()
    await visitor.begin(count=1)
    await expect(visitor.facts).to_contain_text("Done")
    await expect(visitor.detail.locator(".facts")).to_contain_text("32 × 32")
    assert stages.upscaler.requests == []


async def test_the_arrow_keys_recall_earlier_prompts(visitor):
    for prompt in ("a red house", "a blue house"):
        await visitor.begin(prompt, count=1)
        await visitor.sees_sketches(1)
        await expect(visitor.page.get_by_role("heading", name=prompt)).to_be_visible()
        await expect(visitor.facts).to_contain_text("Ready")
    await visitor.prompt.fill("half a thou")
    await visitor.prompt.press("ArrowUp")
    await expect(visitor.prompt).to_have_value("a blue house")
    await visitor.prompt.press("ArrowUp")
    await expect(visitor.prompt).to_have_value("a red house")
    await visitor.prompt.press("ArrowDown")
    await visitor.prompt.press("ArrowDown")
    await expect(visitor.prompt).to_have_value("half a thou")


async def test_seeds_are_fixed_random_reused_and_continued(visitor, stages):
    await visitor.begin(count=2, seed=100)
    await visitor.sees_sketches(2)
    await visitor.pick("generate", 1)
    await visitor.act("Use its seed")
    await expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("101")
    await visitor.button("Random seed").click()
    await expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("")
    stages.generator.requests.clear()
    await visitor.act("One more like this")
    await expect(visitor.facts).to_contain_text("seed 102")
    await visitor.sees_sketches(1)
    assert [one.seed for request in stages.generator.requests for one in request.images] == [102]
    await visitor.button("New seed, same prompt").click()
    await expect(visitor.facts).not_to_contain_text("seed 102")
    await visitor.sees_sketches(1)
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()


@pytest.mark.parametrize("width", [360, 1280])
async def test_settings_work_by_keyboard_at(browser, gateway, stages, width):
    visitor = await open_page(browser, gateway.url, viewport={"width": width, "height": 800})
    await visitor.arrive()
    await visitor.button("Settings").focus()
    await visitor.page.keyboard.press("Enter")
    field = visitor.page.get_by_label("Sketches", exact=True)
    await field.focus()
    await visitor.page.keyboard.press("ArrowDown")
    await visitor.page.keyboard.press("Tab")
    await expect(field).to_have_value("7")
    await visitor.prompt.focus()
    await visitor.page.keyboard.type("a red house")
    await visitor.page.keyboard.press("Enter")
    await visitor.sees_sketches(7)
