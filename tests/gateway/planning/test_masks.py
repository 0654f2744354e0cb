"""Masks in runs and selections: checked before anything begins, brought to the refiner, kept as long as the run."""

import asyncio
import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from gateway.access.caller import Caller
from services import errors as services_errors
from services.errors import NotFound
from services.images.codec import encode_png
from tests.gateway.fake_stage import SIDE_PX, gateway_over, image, png, scripted_stages
from tests.gateway.run_fixtures import ALL, collect, finished, ready, run_finished, spec
from triptych.errors import InvalidRequest, RequestIdReused
from triptych.v1.pipeline_pb2 import RunSpec, RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import INPAINTING_BLENDED, ImageData


def mask_file(side=SIDE_PX, opaque=0):
    """The left half is transparent; the rest is, too, unless `opaque` states otherwise."""
    levels = np.full((side, side), opaque, np.uint8)
    levels[:, : side // 2] = 0
    file = io.BytesIO()
    Image.merge("LA", [Image.new("L", (side, side)), Image.fromarray(levels)]).save(file, "PNG")
    return file.getvalue()


MASK = mask_file(opaque=255)
OTHER_MASK = mask_file()
SHA256 = hashlib.sha256(MASK).hexdigest()


def masked(mask=MASK, **more):
    """One variation of one picture, only in a part of it."""
    asked = RunSpec(prompt="a red house", seed=100, init_images=[image(3)], **more)
    asked.refine.count = 1
    asked.refine.mask.data = mask
    return asked


def repainting(name, mask=MASK, **more):
    return SelectImagesRequest.Selection(
        image=name, refine={"count": 1, "mask": ImageData(data=mask), **more}
    )


async def begin(stages):
    for refiner in stages.refiners:
        refiner.info.inpainting = INPAINTING_BLENDED
        refiner.info.image_size = SIDE_PX
    for generator in stages.generators:
        generator.info.image_size = SIDE_PX
    return stages


@pytest.fixture
async def stages():
    async with scripted_stages() as running:
        yield await begin(running)


@pytest.fixture
async def gateway(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as running:
        yield running


async def refused(gateway, asked):
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.create_run(asked)
    assert gateway.refiner.requests == []
    ((field, description),) = raised.value.violations.items()
    assert field == "spec.refine.mask"
    return description


async def refine_of(gateway, *, refine_count=1, **more):
    """A finished run, and the name of one of its variations."""
    events = await collect(gateway, spec(generate={"count": 1}, refine={"count": refine_count}, upscale=None))
    return events[0].state.run, ready(events)[-1].name


async def test_a_mask_comes_to_the_refiner_with_its_picture(gateway):
    await collect(gateway, masked())
    (request,) = gateway.refiner.requests
    assert (request.mask.data, request.init_image.data) == (MASK, png(3))


async def test_every_variation_has_the_mask(gateway):
    asked = masked()
    asked.refine.count = 3
    await collect(gateway, asked)
    assert [request.mask.data for request in gateway.refiner.requests] == [MASK] * 3


async def test_a_mask_may_be_for_what_the_generator_will_make(gateway):
    asked = spec(upscale=None)
    asked.refine.mask.data = MASK
    await collect(gateway, asked)
    assert [request.mask.data for request in gateway.refiner.requests] == [MASK] * 2


async def test_a_run_without_a_mask_asks_for_none(gateway):
    await collect(gateway, spec())
    assert not any(request.HasField("mask") for request in gateway.refiner.requests)


async def test_a_run_reports_its_mask_by_its_hash(gateway):
    events = await collect(gateway, masked())
    reported = events[0].state.spec.refine.mask
    assert reported == ImageData(sha256=SHA256)
    assert await gateway.facade.read_file(SHA256, ALL) == ("image/png", MASK)


async def test_a_hash_that_a_caller_sends_counts_for_nothing(gateway):
    asked = masked()
    asked.refine.mask.sha256 = hashlib.sha256(png(3)).hexdigest()
    events = await collect(gateway, asked)
    assert events[0].state.spec.refine.mask.sha256 == SHA256
    assert gateway.refiner.requests[0].mask.data == MASK


async def test_without_a_model_that_can_inpaint_a_mask_is_refused(gateway):
    gateway.refiner.info.ClearField("inpainting")
    await gateway.notice()
    assert "the loaded model 'scripted' cannot inpaint" in await refused(gateway, masked())


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (b"", "got no bytes"),
        (b"GIF89a", "must be a PNG file"),
        (MASK[:-30], "damaged or cut short"),
        (mask_file(2 * SIDE_PX), "the size of the picture, 8x8, got 16x16"),
        (bytes(5 * 2**20), "at most 4194304 bytes"),
        (encode_png(np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)), "must have a transparent"),
    ],
    ids=["nothing", "no PNG", "cut short", "of another size", "too large", "without a part to repaint"],
)
async def test_what_is_no_mask_of_the_picture_is_refused(gateway, mask, complaint):
    assert complaint in await refused(gateway, masked(mask))


async def test_a_mask_must_fit_every_picture(gateway):
    asked = masked()
    asked.init_images.append(image(4, 2 * SIDE_PX))
    assert "got 8x8" in await refused(gateway, asked)


async def test_a_mask_without_a_picture_is_refused(gateway):
    asked = masked()
    del asked.init_images[:]
    assert "there is none" in await refused(gateway, asked)


async def test_by_hand_a_mask_for_pictures_that_are_still_to_be_chosen_is_refused(gateway):
    asked = spec(manual={}, upscale=None)
    asked.refine.mask.data = MASK
    assert "goes with the selection" in await refused(gateway, asked)


async def test_a_run_that_goes_on_after_a_restart_has_its_mask(stages, tmp_path):
    stages.refiners[0].close_gates(0)
    async with gateway_over(stages, tmp_path) as gateway:
        run = await gateway.facade.create_run("", masked(), ALL)
        await stages.refiners[0].begun[0].wait()
    stages.refiners[0].gates[0].set()
    async with gateway_over(stages, tmp_path) as gateway:
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED
    assert [request.mask.data for request in stages.refiners[0].requests] == [MASK, MASK]


async def test_another_worker_gets_the_mask_of_a_picture_that_the_first_one_lost(tmp_path):
    async with scripted_stages(refiners=2) as stages, gateway_over(await begin(stages), tmp_path) as gateway:
        for refiner in stages.refiners:
            refiner.close_gates(0)
        run = await gateway.facade.create_run("", masked(), ALL)
        (first,) = [refiner for refiner in stages.refiners if await began(stages.refiners, refiner)]
        (second,) = [refiner for refiner in stages.refiners if refiner is not first]
        second.gates[0].set()
        await first.kill()
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED
        assert second.requests[0].mask.data == MASK


async def began(refiners, wanted):
    """Whether the picture was begun there, once it was begun anywhere."""
    waiting = [asyncio.ensure_future(refiner.begun[0].wait()) for refiner in refiners]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return wanted.begun[0].is_set()


async def test_a_refiner_s_complaint_about_the_mask_names_the_spec_s(gateway):
    gateway.refiner.errors[0] = services_errors.InvalidRequest("mask", "is not to its liking")
    events = await collect_failed(gateway, masked())
    assert "spec.refine.mask: is not to its liking" in finished(events).error.message


async def collect_failed(gateway, asked):
    run = await gateway.client.create_run(asked)
    return [event async for event in gateway.client.watch_run(run.name)]


async def test_a_deleted_run_takes_its_mask_along(gateway):
    name = (await collect(gateway, masked()))[0].state.run
    await gateway.facade.delete_run(name, ALL)
    with pytest.raises(NotFound):
        await gateway.facade.read_file(SHA256, ALL)


async def test_a_mask_of_somebody_else_s_run_is_not_there(gateway):
    await collect(gateway, masked())
    with pytest.raises(NotFound):
        await gateway.facade.read_file(SHA256, Caller("somebody"))


async def test_a_selection_repaints_a_part_of_its_picture(gateway):
    name, variation = await refine_of(gateway)
    await gateway.client.select_images(name, [repainting(variation)])
    await run_finished(gateway, name)
    assert gateway.refiner.requests[-1].mask.data == MASK


async def test_the_mask_of_a_run_is_not_that_of_its_selections(gateway):
    name = (await collect(gateway, masked()))[0].state.run
    selection = SelectImagesRequest.Selection(image=f"{name}/images/refine-0", refine={"count": 1})
    await gateway.client.select_images(name, [selection])
    await run_finished(gateway, name)
    assert [request.HasField("mask") for request in gateway.refiner.requests] == [True, False]


async def test_a_selection_reports_its_mask_by_its_hash(gateway):
    name, variation = await refine_of(gateway)
    await gateway.client.select_images(name, [repainting(variation)])
    await run_finished(gateway, name)
    events = [event async for event in gateway.client.watch_run(name)]
    (selected,) = [event.selected for event in events if event.HasField("selected")]
    assert selected.choices[0].selection.refine.mask == ImageData(sha256=SHA256)


async def test_the_same_mask_selects_once_and_another_one_is_refused(gateway):
    name, variation = await refine_of(gateway)
    for _ in range(2):
        await gateway.client.select_images(name, [repainting(variation)], request_id="once")
    with pytest.raises(RequestIdReused):
        await gateway.client.select_images(name, [repainting(variation, OTHER_MASK)], request_id="once")
    await run_finished(gateway, name)
    assert len(gateway.refiner.requests) == 2


async def test_a_selection_whose_mask_has_another_size_is_refused_by_its_place(gateway):
    name, variation = await refine_of(gateway)
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.select_images(name, [repainting(variation, mask_file(2 * SIDE_PX))])
    assert list(raised.value.violations) == ["selections[0].refine.mask"]


async def test_a_selection_that_goes_on_after_a_restart_has_its_mask(stages, tmp_path):
    async with gateway_over(stages, tmp_path) as gateway:
        name, variation = await refine_of(gateway)
        stages.refiners[0].close_gates(1)
        await gateway.client.select_images(name, [repainting(variation)])
        await stages.refiners[0].begun[1].wait()
    stages.refiners[0].gates[1].set()
    async with gateway_over(stages, tmp_path) as gateway:
        await run_finished(gateway, name)
        assert await gateway.facade.read_file(SHA256, ALL) == ("image/png", MASK)
    assert [request.mask.data for request in stages.refiners[0].requests[1:]] == [MASK, MASK]
