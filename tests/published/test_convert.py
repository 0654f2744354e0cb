"""Every published layout, in small: converted within bounds of memory and disk, as it was written, and of use."""

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from services.generator.dalle.conversion.convert import dalle_sources
from services.generator.dalle.conversion.flax_file import FlaxArray
from services.generator.dalle.conversion.random_weights import FAMILIES
from services.generator.dalle.networks import dalle_parameters, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig
from services.generator.unclip.conversion.random_weights import FAMILIES as UNCLIP_FAMILIES
from services.generator.unclip.model import NETWORKS
from services.pytorch.parts import empty_network, shapes
from services.upscaler.conversion.convert import infer_config
from services.upscaler.conversion.random_weights import CONFIGS
from services.upscaler.model import BUFFERS, shapes_of
from services.weights.catalog import KNOWN
from services.weights.formats.safetensors_file import LazyTensor
from tests.published import layouts
from tests.published.layouts import published, write
from tests.published.pytorch import weight
from tests.services.weights.web_server import serving

MB = 2**20
# What Python, buffers and names take beside the numbers, in any conversion.
CONSTANT = 8 * MB
PARTS = {
    "mini": ("dalle", "vqgan"),
    "glid-3-xl-finetuned": ("bert", "clip", "unet", "autoencoder"),
    "real-m": ("swinir",),
}
STAGES = {"mini": "generator", "glid-3-xl-finetuned": "refiner", "real-m": "upscaler"}

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@pytest.fixture(scope="module", params=PARTS)
def model(request, tmp_path_factory, metered):
    """A model, written as it was published and converted part by part: its name, folders, and what that took."""
    name = request.param
    root = tmp_path_factory.mktemp(name)
    largest = write(name, root / "published", small=True)
    commands = [
        ["convert", root / "published" / part, root / "converted", "--part", part, "--name", name]
        for part in PARTS[name]
    ]
    (root / "converted").mkdir()
    reports = metered(STAGES[name], root / "converted", *commands)
    return name, root / "published", root / "converted", largest, dict(zip(PARTS[name], reports, strict=True))


@only_linux
def test_a_conversion_takes_little_more_memory_than_the_largest_tensor(model):
    name, source, _, largest, reports = model
    for part, report in reports.items():
        assert report["error"] == ""
        whole = sum(path.stat().st_size for path in (source / part).iterdir())
        bound = 1.5 * largest[part] + CONSTANT
        assert bound < whole, f"{part} is too small a file to show anything"
        assert report["memory"] < bound, (name, part, report["memory"] / MB, largest[part] / MB)


def test_every_number_comes_through_as_it_was_published(model):
    name, _, converted, _, _ = model
    if name == "mini":
        return pytest.skip("the golden checkpoints show it")
    for part in PARTS[name]:
        dtype = "float16" if part == "clip" else "float32"
        for tensor, found in load_file(converted / part / "model.safetensors").items():
            expected = weight(tensor, found.shape, dtype).numpy()
            if part == "swinir" and found.ndim > 1:
                expected = expected / 2
            assert np.array_equal(found, expected), tensor
    return None


def test_the_converted_folder_makes_a_picture(model):
    name, _, converted, _, _ = model
    picture = PICTURES[name](converted)
    assert picture.std() > 0.5


def generated(folder: Path) -> np.ndarray:
    from services.generator.dalle.batch import GenerateJob
    from services.generator.dalle.model import load_model
    from services.generator.dalle.stepper import GeneratorStepper

    stepper = GeneratorStepper(load_model(folder), num_slots=1)
    stepper.admit(0, GenerateJob("a red house", 7, 1.0, 0, 1.0, 3.0))
    for _ in range(16):
        stepper.step([0])
    [picture] = stepper.decode([stepper.result(0)])
    return picture


def refined(folder: Path) -> np.ndarray:
    """One step of all four networks; the four that a picture takes at least cost 30 s of processor time."""
    import torch

    from services.refiner.model import load_model

    model = load_model(folder, device="cpu")
    prompt = model.encode_prompt("w1 w2")
    noise = torch.randn((1, *model.latent_shape), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        [picture] = model.decode(
            model.predict_noise(noise, torch.tensor([500.0]), prompt.context, prompt.clip_embed)
        )
    return picture


def enlarged(folder: Path) -> np.ndarray:
    import torch

    from services.upscaler.model import load_swinir

    with torch.inference_mode():
        picture = load_swinir(folder / "swinir").eval()(torch.rand(1, 3, 16, 16))
    return picture.numpy() * 255


PICTURES = {"mini": generated, "glid-3-xl-finetuned": refined, "real-m": enlarged}


@only_linux
def test_a_pull_takes_less_disk_than_twice_the_model_and_a_fifth(tmp_path, metered):
    write("mini", tmp_path / "published", small=True)
    files = {
        path.relative_to(tmp_path / "published").as_posix(): path
        for path in (tmp_path / "published").rglob("*.*")
    }
    (tmp_path / "cache").mkdir()
    with serving(files) as site:
        [report] = metered("generator", tmp_path / "cache", ["pull", "mini", "--from", site.url])
    assert report["error"] == ""
    model = tmp_path / "cache" / "models" / "generator" / "mini"
    num_bytes = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert 0.9 * num_bytes < report["disk"] < 2.2 * num_bytes


@pytest.mark.parametrize("name", layouts.DALLES)
def test_the_published_names_are_those_of_our_dalle(name):
    recorded, _, _ = layouts.DALLES[name]
    sources = dalle_sources(unread(published("generator", recorded)["params"]))
    config = DalleConfig.from_json(FAMILIES[name][0])
    found = {
        ours: tuple(published("generator", recorded)["params"][source.name])[source.layer is not None :]
        for ours, source in sources.items()
    }
    assert found == dalle_parameters.parameter_shapes(config)


def test_the_published_names_are_those_of_our_vqgan():
    recorded = published("generator", "vqgan_f16_16384")
    expected = vqgan.parameter_shapes(vqgan.VqganConfig.from_json(recorded["config"]))
    assert {name.replace("/", "."): tuple(shape) for name, shape in recorded["params"].items()} == expected


@pytest.mark.parametrize("name", layouts.SWINIRS)
def test_the_published_names_and_configuration_are_those_of_our_swinir(name):
    recorded = published("upscaler", layouts.SWINIRS[name])["params"]
    shapes = {key: tuple(shape) for key, (shape, _) in recorded.items() if not key.endswith(BUFFERS)}
    weights = {key: LazyTensor("F32", shape, lambda: np.empty(0)) for key, shape in shapes.items()}
    config = infer_config(weights, name)
    assert config == CONFIGS[name]
    assert shapes_of(config) == shapes


def test_the_catalog_counts_the_published_parameters():
    for (stage, name), known in KNOWN.items():
        for source in known.sources:
            counted = sum(
                int(np.prod(shape)) for shape in shapes_of_source(stage, name, source.part).values()
            )
            assert source.num_params == pytest.approx(counted, rel=0.01), (name, source.part)


def shapes_of_source(stage, name, part):
    if part == "dalle":
        return published("generator", layouts.DALLES[name][0])["params"]
    if part == "vqgan":
        return published("generator", "vqgan_f16_16384")["params"]
    if part == "swinir":
        recorded = published("upscaler", layouts.SWINIRS[name])["params"]
        return {key: shape for key, (shape, _) in recorded.items() if not key.endswith(BUFFERS)}
    if name == "karlo":
        # CLIP's own repository publishes both towers in one file.
        towers = ("text_encoder", "image_encoder") if part == "image_encoder" else (part,)
        return {
            f"{tower}.{key}": shape
            for tower in towers
            for key, shape in shapes(
                empty_network(NETWORKS[tower][1], UNCLIP_FAMILIES[name][tower], Path(name), tower)
            ).items()
        }
    names = {"bert": "bert", "clip": "clip_vit_l_14", "autoencoder": "kl_f8", "unet": layouts.UNETS.get(name)}
    return layouts._manifest(names[part])


def unread(params):
    return {
        name: FlaxArray(Path("nowhere"), tuple(shape), np.dtype(np.float32), ())
        for name, shape in params.items()
    }
