"""The real gateway in a process of its own, scripted stages that draw, and a real browser, all three for a module."""

import shutil

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from tests.web.drawing import drawing_stages
from tests.web.gateway_process import GatewayProcess
from tests.web.visitor import open_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# These few stay in `make test`, each for a kind of thing that the page can do. `make test-page` runs all.
IN_SHORT = {
    "test_a_prompt_becomes_a_file_through_two_choices",
    "test_a_sketch_is_seen_before_it_is_ready",
    "test_a_variation_is_compared_with_its_sketch_from_the_middle",
    "test_a_cancelled_run_is_shown_as_such_keeps_what_it_has_and_its_hints_stay_true",
    "test_a_picture_that_fails_explains_why_and_can_be_made_again",
    "test_axe_finds_nothing_wrong_and_nothing_leaves_the_screen[360-dark]",
    "test_everything_can_be_done_with_the_keyboard_alone",
    "test_every_text_has_both_languages_and_the_same_blanks",
    "test_a_gateway_that_is_killed_in_the_middle_is_waited_for",
    "test_a_gateway_with_tokens_asks_for_one_and_keeps_it_for_the_tab",
    "test_every_setting_shows_its_true_value_and_travels",
    "test_prompt_and_settings_survive_a_reload_and_the_address_names_the_run",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests of `make test-page`.

    A browser belongs to the event loop that it was started on, so the tests of a module share theirs.
    """
    for item in items:
        if "/tests/web/" not in item.path.as_posix():
            continue
        if item.name not in IN_SHORT:
            item.add_marker(pytest.mark.page)
        if item.get_closest_marker("asyncio"):
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium():
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; Debian and Ubuntu: apt-get install chromium")
    async with async_playwright() as playwright:
        # Containers run tests as root, for whom Chromium has no sandbox.
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium):
    """Nothing stays open in it from one test to the next."""
    yield chromium
    for context in list(chromium.contexts):
        await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_stages():
    async with drawing_stages() as drawing:
        yield drawing


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway(module_stages, tmp_path_factory):
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), module_stages.options)
    await process.start()
    yield process
    await process.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def stages(module_stages):
    """As they are unless somebody has set them otherwise."""
    module_stages.reset()
    yield module_stages
    module_stages.reset()


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(module_gateway, stages):
    """It runs, and has no run."""
    if not module_gateway.is_alive:
        await module_gateway.start()
    async with httpx.AsyncClient(base_url=module_gateway.url, timeout=120) as http:
        for run in (await http.get("/runs")).json()["runs"]:
            (await http.post(f"/{run['name']}/cancel", json={})).raise_for_status()
            (await http.delete(f"/{run['name']}")).raise_for_status()
    return module_gateway


@pytest_asyncio.fixture(loop_scope="module")
async def visitor(browser, gateway):
    """Whatever a test does: the console stays empty, and nobody else is asked for anything."""
    arrived = await open_page(browser, gateway.url)
    await arrived.arrive()
    yield arrived
    assert arrived.unexpected == []
    assert arrived.other_hosts == []
