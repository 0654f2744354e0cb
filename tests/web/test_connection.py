"""The page where something goes away in the middle: itself, the gateway, the network, a token."""

import re

import pytest
from click.testing import CliRunner
from playwright.async_api import expect

from gateway.access.tokens_command import tokens
from tests.faults.disks import small_disk, why_no_small_disk
from tests.web.drawing import drawing_stages
from tests.web.gateway_process import GatewayProcess
from tests.web.visitor import open_page

FULL = re.compile("disk is full|storage is lost, damaged or full")
# What Chromium prints about a request that fails; the page can't keep it from doing so.
FAILED_REQUEST = r"Failed to load resource|net::ERR_"


async def test_a_reload_in_the_middle_shows_the_run_as_it_is(visitor, stages):
    stages.hold(stages.generator, 2)
    await visitor.begin("a red house", count=3)
    await visitor.sees_sketches(2)
    await visitor.page.reload()
    await expect(visitor.page.get_by_role("heading", name="a red house")).to_be_visible()
    await visitor.sees_sketches(2)
    stages.let_go(stages.generator)
    await visitor.sees_sketches(3)


async def test_a_reload_after_choices_keeps_the_tree(visitor):
    await visitor.begin(count=2)
    await visitor.sees_sketches(2)
    await visitor.refine(1)
    await visitor.pick("refine", 0)
    await visitor.upscale()
    await visitor.page.reload()
    await expect(visitor.detail.locator(".facts")).to_contain_text("128 × 128")
    await visitor.sees("refine", 4)
    await expect(visitor.page.locator("#tree .node")).to_have_count(2 + 4 + 1)


async def test_a_gateway_that_is_killed_in_the_middle_is_waited_for(visitor, stages, gateway):
    visitor.expected.append(FAILED_REQUEST)
    stages.hold(stages.generator, 1)
    await visitor.begin(count=2)
    await visitor.sees_sketches(1)
    await gateway.kill()
    connection = visitor.page.locator("#connection")
    await expect(connection).to_contain_text("The connection is lost")
    stages.let_go(stages.generator)
    await gateway.start()
    await expect(connection).to_contain_text("Connected again")
    await visitor.sees_sketches(2)
    await visitor.refine(0)


async def test_an_idle_page_shows_that_the_gateway_is_away_and_back(visitor, gateway):
    visitor.expected.append(FAILED_REQUEST)
    connection, state = visitor.page.locator("#connection"), visitor.page.locator("#server-state")
    await gateway.kill()
    await expect(connection).to_contain_text("The connection is lost")
    await expect(state).to_have_text("The gateway does not answer")
    await gateway.start()
    await expect(connection).to_contain_text("Connected again")
    await expect(state).to_contain_text("Ready")


async def test_past_runs_survive_the_gateway(visitor, gateway):
    visitor.expected.append(FAILED_REQUEST)
    await visitor.begin("a blue house", count=1)
    await visitor.sees_sketches(1)
    await gateway.kill()
    await gateway.start()
    await visitor.page.goto(gateway.url)
    await visitor.shows_runs()
    await expect(visitor.runs).to_have_count(1)
    await expect(visitor.runs.locator("img")).to_be_visible()


async def test_a_prompt_that_meets_no_gateway_is_tried_again_and_makes_one_run(visitor, gateway):
    visitor.expected.append(FAILED_REQUEST)
    await gateway.kill()
    await visitor.begin(count=1)
    await gateway.start()
    await visitor.sees_sketches(1)
    await visitor.shows_runs()
    await expect(visitor.runs).to_have_count(1)


async def test_a_stage_without_a_worker_is_named_with_what_to_do(browser, tmp_path):
    async with drawing_stages() as stages:
        gateway = GatewayProcess(tmp_path, stages.options)
        await gateway.start()
        try:
            visitor = await open_page(browser, gateway.url)
            await stages.refiner.kill()
            await visitor.page.goto(gateway.url)
            await expect(visitor.page.locator("#server-state")).to_contain_text("No refiner is running")
            await visitor.begin("a blue house", count=1)
            await visitor.sees_sketches(1)
            await visitor.pick("generate", 0)
            await visitor.act("Refine")
            await expect(visitor.errors).to_contain_text("triptych serve refiner")
            assert visitor.unexpected == []
        finally:
            await gateway.kill()


async def test_a_full_disk_is_said_and_the_prompt_stays(browser, stages, tmp_path):
    if why := why_no_small_disk(tmp_path):
        pytest.skip(why)
    with small_disk(tmp_path / "disk", 2**22) as disk:
        gateway = GatewayProcess(tmp_path, stages.options, store=disk.path / "pictures", prefix=disk.prefix)
        await gateway.start()
        try:
            visitor = await open_page(browser, gateway.url)
            await visitor.arrive()
            disk.fill()
            await visitor.begin(count=1)
            # The gateway has noticed it by itself, or meets it when it keeps the picture.
            await expect(visitor.page.locator("#main")).to_contain_text(FULL)
            await expect(visitor.prompt).to_have_value("a red house")
        finally:
            await gateway.kill()


async def test_a_run_that_is_not_there_is_said_in_words(visitor, gateway):
    visitor.expected.append("404")
    await visitor.page.goto(f"{gateway.url}#/runs/0123456789abcdef")
    await expect(visitor.errors).to_contain_text("not here, or not any more")


async def test_two_pages_show_the_same_run(visitor, browser, gateway):
    await visitor.begin(count=2)
    await visitor.sees_sketches(2)
    other = await open_page(browser, gateway.url)
    await other.page.goto(visitor.page.url)
    await other.sees_sketches(2)
    await visitor.refine(0)
    await expect(other.page.locator("#tree .node")).to_have_count(2 + 4)
    assert other.unexpected == []


async def test_a_gateway_with_tokens_asks_for_one_and_keeps_it_for_the_tab(browser, stages, tmp_path):
    file = tmp_path / "tokens.json"
    made = CliRunner().invoke(tokens, ["add", "anna", "--tokens", str(file)])
    token = made.stdout.split()[-1]
    gateway = GatewayProcess(tmp_path, [*stages.options, "--tokens", str(file)])
    await gateway.start()
    try:
        visitor = await open_page(browser, gateway.url)
        await visitor.page.goto(gateway.url)
        visitor.expected.append("401")
        await visitor.page.get_by_label("Token (kept").fill(token)
        await visitor.button("Use it").click()
        await visitor.begin(count=1)
        await visitor.sees_sketches(1)
        await visitor.refine(0)
        await expect(visitor.detail.locator("img.after")).to_be_visible()
        async with visitor.page.expect_download() as downloading:
            await visitor.act("Download")
        assert (await (await downloading.value).path()).read_bytes().startswith(b"\x89PNG")
        await visitor.page.reload()
        await visitor.sees_sketches(1)
        # It is revoked while the page is open, where nothing is asked of the gateway.
        visitor.expected.append("403")
        await visitor.prompt.fill("a blue house")
        CliRunner().invoke(tokens, ["revoke", "anna", "--tokens", str(file)])
        await expect(visitor.errors).to_contain_text("does not accept the token")
        other = CliRunner().invoke(tokens, ["add", "anna", "--tokens", str(file)]).stdout.split()[-1]
        await visitor.page.get_by_label("Token (kept").fill(other)
        await visitor.errors.get_by_role("button", name="Use it").click()
        await expect(visitor.errors).to_be_empty()
        await visitor.button("Make pictures").click()
        await expect(visitor.page.get_by_role("heading", name="a blue house")).to_be_visible()
        assert visitor.unexpected == []
    finally:
        await gateway.kill()
