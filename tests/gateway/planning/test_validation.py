"""What a gateway refuses before anything is begun, each by the path of its field."""

import io

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image

from tests.gateway.fake_stage import image, pipeline, png
from tests.gateway.run_fixtures import ALL, collect
from tests.png_bomb import png_bomb
from triptych.client import InvalidRequest
from triptych.v1.pipeline_pb2 import RunSpec
from triptych.v1.stage_pb2 import ImageData, ModelInfo


async def refused(gateway, asked) -> tuple[str, str]:
    """The field that is refused, and why."""
    with pytest.raises(InvalidRequest) as raised:
        await collect(gateway, asked)
    ((field, description),) = raised.value.violations.items()
    return field, description


@pytest.mark.parametrize(
    ("text", "field", "description"),
    [
        ("", "spec.prompt", "must say what to draw"),
        ("prompt: '  '", "spec.prompt", "must say what to draw"),
        ("prompt: 'x' generate {count: 0}", "spec.generate.count", "must be 1 to 64, got 0"),
        ("prompt: 'x' generate {count: 10000}", "spec.generate.count", "must be 1 to 64, got 10000"),
        ("prompt: 'x' refine {count: -1}", "spec.refine.count", "must be 1 to 64, got -1"),
        (
            "prompt: 'x' generate {count: 20} refine {count: 4} automatic {top_k_after_generate: 0}",
            "spec.refine.count",
            "20 parents with 4 each make 80 pictures; a stage makes at most 64",
        ),
        (
            "prompt: 'x' generate {count: 4} refine {} automatic {top_k_after_generate: 5}",
            "spec.automatic.top_k_after_generate",
            "must be 0 (all go on) to 4, the pictures that generate makes, got 5",
        ),
        (
            "prompt: 'x' generate {} refine {} automatic {top_k_after_generate: -1}",
            "spec.automatic.top_k_after_generate",
            "got -1",
        ),
        (
            "prompt: 'x' generate {settings {temperature: 0}}",
            "spec.generate.settings.temperature",
            "must be 0.01 to 100, got 0",
        ),
        (
            "prompt: 'x' generate {settings {temperature: nan}}",
            "spec.generate.settings.temperature",
            "got nan",
        ),
        (
            "prompt: 'x' generate {settings {guidance_scale: inf}}",
            "spec.generate.settings.guidance_scale",
            "got inf",
        ),
        (
            "prompt: 'x' generate {settings {top_p: 0}}",
            "spec.generate.settings.top_p",
            "above 0 and at most 1",
        ),
        ("prompt: 'x' generate {settings {top_p: 1.5}}", "spec.generate.settings.top_p", "got 1.5"),
        ("prompt: 'x' generate {settings {top_k: -1}}", "spec.generate.settings.top_k", "got -1"),
        (
            "prompt: 'x' generate {settings {preview_every: -1}}",
            "spec.generate.settings.preview_every",
            "got -1",
        ),
        ("prompt: 'x' refine {settings {num_steps: 0}}", "spec.refine.settings.num_steps", "got 0"),
        (
            "prompt: 'x' refine {settings {num_steps: 31}}",
            "spec.refine.settings.num_steps",
            "must be 1 to 30",
        ),
        (
            "prompt: 'x' refine {settings {skip_ratio: 1}}",
            "spec.refine.settings.skip_ratio",
            "below 1, got 1",
        ),
        ("prompt: 'x' refine {settings {skip_ratio: nan}}", "spec.refine.settings.skip_ratio", "got nan"),
        ("prompt: 'x' upscale {}", "spec.init_images", "must hold the pictures to upscale"),
        (
            "prompt: 'x' upscale {settings {tile_size: -1}} init_images {data: 'x'}",
            "spec.upscale.settings.tile_size",
            "got -1",
        ),
        (
            "prompt: 'x' generate {} init_images {data: 'x'}",
            "spec.init_images",
            "must be empty with spec.generate",
        ),
        ("prompt: 'x' refine {} init_images {}", "spec.init_images[0].data", "got no bytes"),
        (
            "prompt: 'x' refine {} init_images {data: 'MZ'}",
            "spec.init_images[0].data",
            "must be a PNG, JPEG, WebP",
        ),
        ("prompt: 'x' model: 'mega'", "spec.model", "no generator serves 'mega'; served: scripted"),
    ],
)
async def test_a_spec_that_cannot_be_served_is_refused(gateway, text, field, description):
    gateway.refiner.info.ranges["num_steps"].highest = 30
    await gateway.notice()
    refusal = await refused(gateway, text_format.Parse(text, RunSpec()))
    assert refusal[0] == field
    assert description in refusal[1]
    assert gateway.generator.requests == gateway.refiner.requests == gateway.upscaler.requests == []


@pytest.mark.parametrize(
    ("settings", "field", "description"),
    [
        ("tile_size: 1024", "tile_size", "a multiple of 8 from 16 to 512, got 1024"),
        ("tile_size: 8", "tile_size", "a multiple of 8 from 16 to 512, got 8"),
        ("tile_size: 100", "tile_size", "a multiple of 8 from 16 to 512, got 100"),
        ("tile_size: 64 tile_overlap: 60", "tile_overlap", "must be 0 to 56 with tiles of 64, got 60"),
    ],
)
async def test_tiles_that_the_model_cannot_make_are_refused(gateway, settings, field, description):
    limits = gateway.upscaler.info.limits
    limits.max_tile_size, limits.tile_multiple = 512, 8
    await gateway.notice()
    refusal = await refused(
        gateway,
        text_format.Parse(f"prompt: 'x' upscale {{settings {{{settings}}}}} generate {{}}", RunSpec()),
    )
    assert refusal[0] == f"spec.upscale.settings.{field}"
    assert description in refusal[1]
    assert gateway.generator.requests == []


@pytest.mark.parametrize("mode", ["automatic {}", "manual {}"])
async def test_a_picture_that_is_too_large_to_be_enlarged_in_one_piece_is_refused_before_it_is_made(
    gateway, mode
):
    limits = gateway.upscaler.info.limits
    limits.max_tile_size, limits.tile_multiple = 512, 8
    gateway.generator.info.image_size = 512
    await gateway.notice()
    text = f"prompt: 'x' generate {{}} upscale {{settings {{tile_size: 0}}}} {mode}"
    field, description = await refused(gateway, text_format.Parse(text, RunSpec()))
    assert field == "spec.upscale.settings.tile_size"
    assert (
        "must not be 0 with pictures of 512x512: in one piece they would be tiles of 520x520" in description
    )
    assert gateway.generator.requests == []


async def test_a_given_picture_that_is_too_large_to_be_enlarged_in_one_piece_is_refused(gateway):
    gateway.upscaler.info.limits.max_tile_size = 15
    await gateway.notice()
    asked = RunSpec(init_images=[image(1), image(2, side=16)])
    asked.upscale.settings.tile_size = 0
    field, description = await refused(gateway, asked)
    assert field == "spec.upscale.settings.tile_size"
    assert "with pictures of 16x16" in description


async def test_by_hand_it_is_enough_that_one_stage_s_pictures_can_be_enlarged(gateway):
    gateway.upscaler.info.limits.max_tile_size = 300
    gateway.generator.info.image_size, gateway.refiner.info.image_size = 512, 256
    await gateway.notice()
    asked = text_format.Parse(
        "prompt: 'x' generate {count: 1} refine {} upscale {settings {tile_size: 0}} manual {}", RunSpec()
    )
    assert (await gateway.facade.create_run("", asked, ALL)).name


async def test_tiles_that_are_the_model_s_own_choice_bound_the_overlap(gateway):
    limits = gateway.upscaler.info.limits
    limits.max_tile_size, limits.tile_multiple = 512, 8
    gateway.upscaler.info.defaults["tile_size"] = 64
    await gateway.notice()
    text = "prompt: 'x' generate {} upscale {settings {tile_overlap: 60}}"
    refusal = await refused(gateway, text_format.Parse(text, RunSpec()))
    assert refusal == ("spec.upscale.settings.tile_overlap", "must be 0 to 56 with tiles of 64, got 60")


async def test_a_setting_beyond_the_model_s_range_is_refused_before_any_stage_begins(gateway):
    gateway.refiner.info.ranges["guidance_scale"].highest = 100
    await gateway.notice()
    text = "prompt: 'x' generate {} refine {settings {guidance_scale: 101}} manual {}"
    refusal = await refused(gateway, text_format.Parse(text, RunSpec()))
    assert refusal == ("spec.refine.settings.guidance_scale", "must be 0 to 100, got 101")
    assert gateway.generator.requests == []


async def test_too_few_steps_left_are_refused_before_any_stage_begins(gateway):
    model = gateway.refiner.info
    model.ranges["num_steps"].MergeFrom(ModelInfo.Range(lowest=4, highest=1000))
    model.defaults["num_steps"], model.defaults["skip_ratio"] = 27, 0.76
    await gateway.notice()
    text = "prompt: 'x' generate {} refine {settings {num_steps: 10}}"
    field, description = await refused(gateway, text_format.Parse(text, RunSpec()))
    assert field == "spec.refine.settings.skip_ratio"
    assert "must leave at least 4 of 10 steps, got 0.76 which leaves 2" in description
    assert gateway.generator.requests == []


async def test_what_is_refined_from_nothing_has_all_its_steps(gateway):
    model = gateway.refiner.info
    model.ranges["num_steps"].MergeFrom(ModelInfo.Range(lowest=4, highest=1000))
    model.defaults["skip_ratio"] = 0.76
    await gateway.notice()
    asked = text_format.Parse("prompt: 'x' refine {count: 1 settings {num_steps: 10}}", RunSpec())
    assert (await gateway.facade.create_run("", asked, ALL)).name


async def test_a_prompt_of_ten_megabytes_is_refused_in_a_sentence(gateway):
    refusal = await refused(gateway, RunSpec(prompt="x" * 10 * 2**20))
    assert refusal == ("spec.prompt", "must have at most 2000 bytes, got 10485760")


async def test_a_model_may_accept_less_of_a_prompt(gateway):
    gateway.generator.info.limits.max_prompt_bytes = 10
    await gateway.notice()
    refusal = await refused(gateway, RunSpec(prompt="a red house", generate={}))
    assert refusal == ("spec.prompt", "must have at most 10 bytes, got 11")


async def test_a_picture_beyond_the_model_s_limit_is_too_large(gateway):
    gateway.refiner.info.limits.max_image_pixels = 32
    await gateway.notice()
    with pytest.raises(InvalidRequest) as raised:
        await collect(gateway, RunSpec(prompt="x", refine={}, init_images=[image(1)]))
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert "got 8x8" in str(raised.value)


async def test_a_png_bomb_is_refused_by_its_header(gateway):
    with pytest.raises(InvalidRequest) as raised:
        await collect(gateway, RunSpec(prompt="x", refine={}, init_images=[ImageData(data=png_bomb())]))
    assert raised.value.reason == "IMAGE_TOO_LARGE"
    assert "must have at most 26214400 pixels" in str(raised.value)


async def test_a_truncated_jpeg_is_damaged(gateway):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    asked = RunSpec(prompt="x", refine={}, init_images=[image(1), ImageData(data=file.getvalue()[:-500])])
    field, description = await refused(gateway, asked)
    assert field == "spec.init_images[1].data"
    assert "damaged or cut short" in description


async def test_too_many_init_images_are_refused(gateway):
    asked = RunSpec(prompt="x", refine={"count": 1}, init_images=[ImageData(data=png(1))] * 17)
    assert await refused(gateway, asked) == ("spec.init_images", "must be at most 16, got 17")


async def test_the_caller_s_mistake_is_reported_before_the_missing_worker():
    async with pipeline(generators=0) as gateway:
        field, _ = await refused(gateway, RunSpec(prompt="x", generate={"count": 0}))
    assert field == "spec.generate.count"
