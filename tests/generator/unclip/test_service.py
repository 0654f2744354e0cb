"""unCLIP behind the generator's contract."""

import io
import subprocess
import sys

import grpc
import numpy as np
import pytest
from PIL import Image

from services.errors import InvalidRequest
from services.generator.service import SERVICE_NAME, GeneratorService, load
from services.serving.stage_service import ServeOptions
from tests.stage_server import serving_stage
from triptych.v1.generator_pb2 import GenerateRequest, GenerateSettings
from triptych.v1.generator_pb2_grpc import GeneratorServiceStub, add_GeneratorServiceServicer_to_server
from triptych.v1.stage_pb2 import ImageData, ImageItem, ImagePrompt, TextDifference


def options(folder):
    return ServeOptions(
        model=str(folder), host="127.0.0.1", port=0, slots=2, max_queue=8, threads=1, device="cpu", grace=1,
        exit_with_parent=False, log_level="info",
    )  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    return load(options(tiny_folder))


@pytest.fixture
async def stub(loaded):
    async with serving_stage(
        GeneratorService(), add_GeneratorServiceServicer_to_server, SERVICE_NAME, loaded, max_queue=8
    ) as channel:
        yield GeneratorServiceStub(channel)


def png(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageData(mime_type="image/png", data=buffer.getvalue())


def request(*seeds, prompt="a red house", image_prompts=(), text_difference=None, **settings):
    return GenerateRequest(
        prompt=prompt,
        images=[ImageItem(index=i, seed=seed) for i, seed in enumerate(seeds)],
        settings=GenerateSettings(**settings),
        image_prompts=image_prompts,
        text_difference=text_difference,
    )


async def pictures_of(stub, sent):
    events = [response.event async for response in stub.Generate(sent)]
    return {
        event.image.index: np.asarray(Image.open(io.BytesIO(event.image.image.data)))
        for event in events
        if event.HasField("image")
    }, events


async def test_a_job_reports_the_steps_of_all_its_phases_and_previews_once_there_are_pixels(stub):
    pictures, events = await pictures_of(stub, request(1, 2, 3, preview_every=1))
    assert {index: picture.shape for index, picture in pictures.items()} == dict.fromkeys(
        range(3), (64, 64, 3)
    )
    assert {event.progress.num_steps for event in events if event.HasField("progress")} == {6 + 8 + 3}
    assert all(event.preview.step > 6 for event in events if event.HasField("preview"))


async def test_more_jobs_than_slots_give_the_pictures_that_each_has_alone(stub):
    together, _ = await pictures_of(stub, request(1, 2, 3, 4))
    alone, _ = await pictures_of(stub, request(4))
    assert np.abs(together[3].astype(int) - alone[0]).max() <= 1


async def test_a_picture_alone_is_varied_and_its_steps_are_two_phases(stub):
    pictures, events = await pictures_of(
        stub, request(1, 2, prompt="", image_prompts=[ImagePrompt(image=png(0))])
    )
    assert {event.progress.num_steps for event in events if event.HasField("progress")} == {8 + 3}
    assert not np.array_equal(pictures[0], pictures[1])


async def test_the_model_explains_what_its_family_accepts(loaded):
    info = loaded.info
    assert info.architecture == "unclip"
    assert info.limits.max_image_prompts == 4
    assert info.image_size == 64
    assert dict(info.defaults) == {
        "prior_num_steps": 6, "decoder_num_steps": 8, "super_res_num_steps": 3, "guidance_scale": 2,
        "prior_guidance_scale": 2, "preview_every": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (request(1, prompt=""), "prompt"),
        (request(1, temperature=0.5), "settings.temperature"),
        (request(1, decoder_num_steps=1), "settings.decoder_num_steps"),
        (request(1, super_res_num_steps=1), "settings.super_res_num_steps"),
        (request(1, guidance_scale=-1), "settings.guidance_scale"),
        (request(1, image_prompts=[ImagePrompt(image=png(0))] * 5), "image_prompts"),
        (request(1, image_prompts=[ImagePrompt(image=png(0), weight=0)]), "image_prompts"),
        (request(1, image_prompts=[ImagePrompt(image=png(0), weight=-1)]), "image_prompts[0].weight"),
        (request(1, image_prompts=[ImagePrompt(image=ImageData(data=b"no"))]), "image_prompts[0].image"),
        (request(1, text_difference=TextDifference(source="a cat")), "text_difference.target"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_the_name_of_the_field(loaded, stub, sent, field):
    with pytest.raises(InvalidRequest) as refused:
        loaded.read_request(sent, loaded.info, loaded.vocabulary)
    assert refused.value.field == field
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await pictures_of(stub, sent)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_serving_one_family_imports_no_library_of_the_other(tiny_folder):
    script = (
        "import sys\n"
        "from services.generator.service import load\n"
        "from services.serving.stage_service import ServeOptions\n"
        f"load(ServeOptions(model={str(tiny_folder)!r}, host='', port=0, slots=1, max_queue=1, threads=1, device='cpu',"
        " grace=1, exit_with_parent=False, log_level='info'))\n"
        "print([m for m in ('jax', 'jaxlib', 'services.generator.dalle') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_serving_dalle_imports_no_pytorch():
    script = (
        "import sys, importlib\n"
        "import services.generator.service\n"
        "importlib.import_module('services.generator.dalle.service')\n"
        "print([m for m in ('torch', 'services.generator.unclip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
