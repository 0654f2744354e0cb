"""Pictures that the person brings, and parts of pictures that are made anew."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import expect

from tests.web.visitor import open_page

PAINT = """(all) => {
    const canvas = document.querySelector("#mask-editor canvas");
    const box = canvas.getBoundingClientRect();
    const send = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
        pointerId: 7, pointerType: "touch", isPrimary: true, bubbles: true, buttons: type === "pointerup" ? 0 : 1,
        clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
    canvas.setPointerCapture = () => {};
    send("pointerdown", all[0]);
    all.slice(1).forEach((one) => send("pointermove", one));
    send("pointerup", all.at(-1));
}"""
DROP = """async ([name, data, kind]) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
    const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""


def photo(width: int, height: int) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2] = (90, 140, 230)
    pixels[height // 2 :] = (60, 120, 40)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def bring(visitor, data: bytes, way: str = "pick") -> None:
    if way == "pick":
        file = {"name": "garden.png", "mimeType": "image/png", "buffer": data}
        await visitor.page.locator("#file-picker").set_input_files(file)
    else:
        await visitor.page.evaluate(DROP, ["garden.png", base64.b64encode(data).decode(), way])
    await expect(visitor.detail.get_by_role("heading", name="Your picture")).to_be_visible()


@pytest.mark.parametrize("way", ["pick", "drop", "paste"])
async def test_a_picture_is_brought_and_refined(visitor, stages, way):
    await bring(visitor, photo(48, 64), way)
    await expect(visitor.detail).to_contain_text("The models draw squares")
    await visitor.prompt.fill("a blue house")
    await visitor.act("Refine")
    await visitor.sees("refine", 4)
    request = stages.refiner.requests[0]
    assert request.prompt == "a blue house"
    with Image.open(io.BytesIO(request.init_image.data)) as sent:
        assert sent.size == (48, 48)
    # What it began with is there, also after a reload: to compare with, and to take on from.
    await expect(visitor.page.get_by_role("slider", name="Compare with your picture")).to_have_value("50")
    await visitor.page.reload()
    await visitor.sees("refine", 4)
    await expect(visitor.detail.locator("img.before")).to_be_visible()
    await visitor.page.locator("#tree").get_by_role("button", name="Your picture").click()
    await visitor.act("Vary")
    await visitor.sees("refine", 8)


@pytest.mark.parametrize(
    ("choice", "side"), [("Crop the bottom or right", 48), ("All of it, with borders", 64)]
)
async def test_a_picture_of_another_shape_is_cropped_or_bordered_as_chosen(visitor, stages, choice, side):
    await bring(visitor, photo(48, 64))
    await visitor.page.get_by_label("The models draw squares").select_option(choice)
    await visitor.prompt.fill("a blue house")
    await visitor.act("Vary")
    await visitor.sees("refine", 4)
    with Image.open(io.BytesIO(stages.refiner.requests[0].init_image.data)) as sent:
        assert sent.size == (side, side)
        pixels = np.asarray(sent.convert("RGB"), np.int16)
    sky, ground = (90, 140, 230), (60, 120, 40)
    # Cropped: the lower 48 of 64 rows. With borders: everything, and the borders have its colours.
    horizon = 32 if side == 64 else 16
    assert (pixels[: horizon - 1, side // 2] == sky).all()
    assert (pixels[horizon:, side // 2] == ground).all()
    assert np.abs(pixels[0, 0] - sky).max() <= 2
    assert np.abs(pixels[-1, 0] - ground).max() <= 2
    # The setting is kept, and is the same one as in the settings.
    await visitor.button("Settings").click()
    await expect(visitor.page.locator("#refine-fit option:checked")).to_have_text(choice)


async def test_a_picture_needs_no_prompt_to_be_upscaled_and_one_to_be_refined(visitor, stages):
    await bring(visitor, photo(40, 30))
    await visitor.act("Refine")
    await expect(visitor.errors).to_contain_text("Say in the prompt")
    await visitor.act("Upscale ×4")
    await visitor.sees("upscale", 1)
    with Image.open(io.BytesIO(stages.upscaler.requests[0].images[0].image.data)) as sent:
        assert sent.size == (40, 30)


async def test_what_is_no_picture_is_refused_in_words(visitor):
    file = {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"}
    await visitor.page.locator("#file-picker").set_input_files(file)
    await expect(visitor.errors).to_contain_text("This file is no picture")


async def test_a_phone_offers_its_camera(browser, gateway):
    visitor = await open_page(
        browser, gateway.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    await visitor.arrive()
    await expect(visitor.button("Take a photo")).to_be_visible()
    camera = visitor.page.locator("#camera-picker")
    assert await camera.get_attribute("capture") == "environment"
    await camera.set_input_files({"name": "photo.png", "mimeType": "image/png", "buffer": photo(32, 32)})
    await expect(visitor.detail.get_by_role("heading", name="Your picture")).to_be_visible()


async def test_the_sky_of_a_photo_is_made_anew_by_finger(browser, gateway, stages):
    visitor = await open_page(
        browser, gateway.url, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    await visitor.arrive()
    await visitor.prompt.fill("a red house by the sea")
    await bring(visitor, photo(64, 64))
    await visitor.act("Edit a part")
    apply = visitor.button("Make this part anew")
    await expect(apply).to_be_disabled()
    await visitor.page.get_by_label("Brush size").last.fill("50")
    await visitor.page.evaluate(PAINT, [[0, 0.1], [0.5, 0.1], [1, 0.1]])
    await expect(visitor.page.locator("#mask-editor")).to_contain_text("% of the picture will be made anew")
    await apply.click()
    await visitor.sees("refine", 4)
    request = stages.refiner.requests[0]
    with Image.open(io.BytesIO(request.mask.data)) as sent:
        mask = np.asarray(sent.getchannel("A"))
    assert mask.shape == (64, 64)
    assert mask[3].max() < 128 <= mask[50].min()
    assert request.settings.skip_ratio == 0


async def test_the_mask_is_painted_inverted_and_undone_with_the_keyboard(visitor, stages):
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await visitor.act("Edit a part")
    canvas = visitor.page.locator("#mask-editor canvas")
    await expect(canvas).to_be_focused()
    painted = "canvas => canvas.getContext('2d').getImageData(0, 0, 32, 32).data.filter((_, at) => at % 4 === 3).filter((one) => one > 127).length"
    await visitor.page.keyboard.press("Space")
    first = await canvas.evaluate(painted)
    assert 0 < first < 300
    for _ in range(4):
        await visitor.page.keyboard.press("Shift+ArrowRight")
    assert await canvas.evaluate(painted) > first
    for _ in range(4):
        await visitor.page.keyboard.press("Control+z")
    assert await canvas.evaluate(painted) == first
    await visitor.page.keyboard.press("i")
    assert abs(await canvas.evaluate(painted) - (32 * 32 - first)) <= 40
    await visitor.page.keyboard.press("e")
    await expect(visitor.page.locator("#mask-eraser")).to_have_attribute("aria-pressed", "true")
    await visitor.page.locator("#mask-clear").click()
    assert await canvas.evaluate(painted) == 0
    await visitor.page.locator("#mask-undo").click()
    await visitor.page.get_by_label("What the whole picture should show then").fill("a blue house")
    await visitor.page.locator("#mask-apply").click()
    await visitor.sees("refine", 4)
    # Another prompt is another run, which begins with the picture.
    await expect(visitor.page.get_by_role("heading", name="a blue house")).to_be_visible()
    assert stages.refiner.requests[0].mask.data


async def test_a_picture_made_by_triptych_restores_its_prompt_seed_and_settings(visitor, stages):
    await visitor.set(refine_negative_prompt="clouds", generate_temperature=0.7)
    await visitor.begin("a red house by the sea", count=2, seed=100)
    await visitor.sees_sketches(2)
    await visitor.pick("generate", 1)
    async with visitor.page.expect_download() as downloading:
        await visitor.act("Download")
    data = await asyncio.to_thread((await (await downloading.value).path()).read_bytes)
    await visitor.page.evaluate("() => localStorage.clear()")
    await visitor.page.goto("about:blank")
    await visitor.arrive()
    await expect(visitor.prompt).to_have_value("")
    await bring(visitor, data, "drop")
    await expect(visitor.prompt).to_have_value("a red house by the sea")
    await expect(visitor.page.get_by_label("Seed", exact=True)).to_have_value("101")
    await expect(visitor.page.locator("#generate-temperature")).to_have_value("0.7")
    await expect(visitor.page.locator("#generate-count")).to_have_value("2")
    await expect(visitor.page.locator("#refine-negative_prompt")).to_have_value("clouds")


async def test_a_picture_of_a_past_run_goes_on_with_another_prompt(visitor, stages):
    await visitor.begin("a red house", count=1)
    await visitor.sees_sketches(1)
    address = visitor.page.url
    await visitor.page.goto("about:blank")
    await visitor.page.goto(address)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await visitor.prompt.fill("a blue house")
    await expect(visitor.detail).to_contain_text("They use your new prompt, “a blue house”, in a new run.")
    await visitor.act("Refine")
    await expect(visitor.page.get_by_role("heading", name="a blue house")).to_be_visible()
    await visitor.sees("refine", 4)
    assert stages.refiner.requests[0].prompt == "a blue house"
