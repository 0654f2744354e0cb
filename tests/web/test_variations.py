"""A second generator, which draws from pictures: it is chosen, a picture is varied, and two are mixed."""

from functools import partial

import pytest_asyncio
from playwright.async_api import expect

from tests.gateway.fake_stage import ScriptedGenerator
from tests.web.drawing import SIDE_PX, script
from tests.web.gateway_process import GatewayProcess
from tests.web.test_own_pictures import bring, photo


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unclip():
    """A generator of the other family."""
    started = ScriptedGenerator(model="varying", digest="d2")
    started.info.architecture = "unclip"
    started.info.image_size = SIDE_PX
    started.info.limits.max_image_prompts = 4
    started.info.defaults["decoder_num_steps"] = 25
    started.info.defaults["super_res_num_steps"] = 7
    started.blank = set()
    started._script = partial(script, started)
    await started.start()
    yield started
    await started.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway(module_stages, unclip, tmp_path_factory):
    options = [*module_stages.options, "--generator", unclip.address]
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), options)
    await process.start()
    yield process
    await process.kill()


async def test_the_generator_is_chosen_with_its_own_settings(visitor, stages, unclip):
    unclip.requests.clear()
    await visitor.page.get_by_label("Generator").select_option("varying")
    await visitor.set(generate_super_res_num_steps=0)
    await visitor.begin("a red house", count=2)
    await visitor.sees_sketches(2)
    assert stages.generator.requests == []
    assert {request.settings.super_res_num_steps for request in unclip.requests} == {0}
    # It is still chosen after a reload, and the other one has settings of its own.
    await visitor.page.reload()
    await expect(visitor.page.get_by_label("Generator")).to_have_value("varying")
    await visitor.page.get_by_label("Generator").select_option("scripted")
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    assert len(stages.generator.requests) == 1


async def test_a_picture_is_varied_mixed_refined_and_enlarged(visitor, stages, unclip):
    unclip.requests.clear()
    await visitor.prompt.fill("")
    await bring(visitor, photo(48, 64), "drop")
    await expect(visitor.detail).to_contain_text("New pictures like it are by “varying”.")
    await visitor.act("New pictures like it")
    await visitor.sees_sketches(4)
    assert [len(request.image_prompts) for request in unclip.requests] == [1] * 4
    assert {request.prompt for request in unclip.requests} == {""}

    unclip.requests.clear()
    await visitor.pick("generate", 1)
    second = {"name": "second.png", "mimeType": "image/png", "buffer": photo(32, 32)}
    await visitor.page.locator("#mix-picker").set_input_files(second)
    await visitor.page.get_by_label("Share of the second picture").fill("75")
    await visitor.act("Make 4 mixtures")
    await expect(visitor.detail.get_by_role("button", name="Make 4 mixtures")).to_be_hidden()
    await visitor.sees_sketches(4)
    weights = {tuple(one.weight for one in request.image_prompts) for request in unclip.requests}
    assert weights == {(0.25, 0.75)}

    await visitor.prompt.fill("a blue house")
    await visitor.pick("generate", 2)
    await visitor.act("Refine")
    await visitor.sees("refine", 4)
    assert stages.refiner.requests[0].prompt == "a blue house"
    await visitor.pick("refine", 0)
    await visitor.upscale()


async def test_two_pictures_dropped_at_once_are_mixed(visitor):
    await visitor.page.evaluate(
        """() => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 16;
            canvas.toBlob((blob) => {
                const transfer = new DataTransfer();
                for (const name of ["one.png", "two.png"]) transfer.items.add(new File([blob], name, { type: "image/png" }));
                document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
            });
        }"""
    )
    await expect(visitor.detail.get_by_role("heading", name="Your picture")).to_be_visible()
    await expect(visitor.page.get_by_label("Share of the second picture")).to_have_value("50")
