"""Two steps of each of tiny-unclip's recipes, with stand-in sprites, and a picture by what they export."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from services.generator.unclip.model import UnclipModel, load_model
from services.generator.unclip.networks.unet import UNet
from services.generator.unclip.stepper import GenerateJob, ImagePrompt, generate
from services.pytorch.clip import Clip
from services.pytorch.clip_tokenizer import Tokenizer
from training.export import read_files
from training.loop import Options, train
from training.refiner.train_clip import load_clip
from training.unclip import train_clip, train_decoder, train_prior, train_super_res, train_text
from training.unclip.export import read_clip, restore, write_clip, write_part
from training.unclip.networks import (
    DECODER,
    EMBED_DIM,
    LARGEST_ROW_WEIGHT,
    PRIOR,
    SUPER_RES,
    TEXT_PROJECTION,
    Decoder,
    Reader,
    make_prior,
    weighted_error,
)
from training.unclip.scene_pool import ScenePool, cached_pool, make_pool, pool_scenes
from training.world.drawing import Painter
from training.world.scenes import NARROW, Scene, SceneObject, is_held_out, laid_out_anew, sample_scenes
from training.world.sprites import stand_in_sprites

pytestmark = pytest.mark.filterwarnings("ignore:.*channels_last.*")


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(stand_in_sprites())


@pytest.fixture
def two_steps(tmp_path: Path) -> Options:
    return Options(
        steps=2, batch_size=4, ema_decay=0.5, log_every=1, measure_every=2, output_folder=tmp_path / "out"
    )


@pytest.fixture(scope="module")
def clip() -> tuple[Clip, Tokenizer]:
    return load_clip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: tuple[Clip, Tokenizer]) -> Path:
    """A model folder with CLIP in it."""
    folder = tmp_path_factory.mktemp("unclip") / "tiny-unclip"
    write_clip(clip[0], read_files("refiner", "clip", ["vocab.json", "merges.txt"]), folder=folder)
    return folder


@pytest.fixture(scope="module")
def pool(painter: Painter, clip: tuple[Clip, Tokenizer]) -> ScenePool:
    return make_pool(pool_scenes(4, 0, held_out=False), clip[0].eval(), painter)


def two_cats() -> Scene:
    cat, car = (
        SceneObject("cat", "black", "medium", "left"),
        SceneObject("car", "red", "small", "right"),
    )
    return Scene("beach", "night", "clear", 0, "moon", "left", (cat, car))


def test_a_scene_laid_out_anew_has_the_same_content_and_another_layout():
    rng = random.Random(0)
    scene = two_cats()
    anew = [laid_out_anew(scene, rng, NARROW) for _ in range(20)]

    def content(s: Scene) -> object:
        return s.place, s.time, s.weather, s.sky, sorted((o.name, o.colour) for o in s.objects)

    assert {repr(content(one)) for one in anew} == {repr(content(scene))}
    assert {one.objects[0].name for one in anew} == {"cat", "car"}
    assert {one.variant for one in anew} == {0, 1}
    assert {tuple(o.slot for o in one.objects) for one in anew} == {("left", "right")}
    assert {is_held_out(one) for one in anew} == {is_held_out(scene)}


def test_what_is_alike_stays_alike_in_another_layout():
    for scene in sample_scenes(40, 3):
        anew = laid_out_anew(scene, random.Random(1), NARROW)
        sizes = {(o.name, o.colour): set() for o in anew.objects}
        for o in anew.objects:
            sizes[o.name, o.colour].add(o.size)
        assert all(len(each) == 1 for each in sizes.values())
        assert len({o.slot for o in anew.objects}) == len(anew.objects)


def test_clip_takes_two_steps_and_its_towers_are_read_back(
    painter: Painter, two_steps: Options, folder: Path, clip: tuple[Clip, Tokenizer]
):
    probed = train_clip.ProbedClip(load_clip()[0])
    average = train(
        "clip",
        probed,
        partial(train_clip.losses_of_step, probed, clip[1], painter, two_steps.batch_size),
        two_steps,
        measure=partial(train_clip.measure, painter, 2),
    )
    assert not torch.equal(average.clip.visual.proj, clip[0].visual.proj)
    again, tokenizer = read_clip(folder)
    assert torch.equal(again.visual.proj, clip[0].visual.proj.half().float())
    assert np.array_equal(tokenizer.encode(["a red house"]), clip[1].encode(["a red house"]))


def test_the_text_tower_is_trained_alone(two_steps: Options, folder: Path, pool: ScenePool):
    clip, tokenizer = read_clip(folder)
    before = clip.text_projection.clone()
    probed = train_text.ProbedText(clip)
    losses = partial(train_text.losses_of_step, probed, pool, tokenizer, two_steps.batch_size)
    train("text", probed, losses, two_steps, measure=train_text.Exam(pool, tokenizer).measure)
    assert not torch.equal(clip.text_projection, before)
    assert all(p.grad is None for p in clip.visual.parameters())


def test_the_probe_of_the_prior_learns_from_pictures_alone(folder: Path, pool: ScenePool):
    probed = train_prior.ProbedPrior(make_prior(pool.embeddings))
    losses = train_prior.losses_of_step(probed, pool, Reader(folder), 4, 0)
    (losses["things"] + losses["settings"]).backward(retain_graph=True)
    assert all(p.grad is None for p in probed.content.parameters())
    assert probed.prior.proj_in.weight.grad is not None
    losses["probe"].backward()
    assert all(p.grad is not None for p in probed.content.parameters())


def test_a_part_goes_on_from_its_exported_weights(tmp_path: Path):
    written, restored = UNet(SUPER_RES.network), UNet(SUPER_RES.network)
    write_part("super_res_first", written, SUPER_RES, folder=tmp_path)
    restore(restored, "super_res_first", folder=tmp_path)
    for one, other in zip(written.parameters(), restored.parameters(), strict=True):
        assert torch.equal(one.half().float(), other)


def test_twins_follow_one_another_and_none_is_held_out():
    scenes = train_clip.draw_scenes(16, random.Random(1))
    for scene, twin in zip(scenes[::2], scenes[1::2], strict=True):
        assert sorted((o.name, o.colour or "") for o in scene.objects) == sorted(
            (o.name, o.colour or "") for o in twin.objects
        )
    assert not any(is_held_out(scene) for scene in scenes)


def test_the_training_computes_the_embedding_that_the_tower_does(clip: tuple[Clip, Tokenizer]):
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        embeddings, patches = train_clip.encode_image(clip[0].visual, images)
        expected = clip[0].encode_image(images)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert patches.shape == (2, 64, 160)


def test_a_probe_that_knows_what_covers_each_patch_loses_nothing(painter: Painter):
    scene = two_cats()
    probe = train_clip.PatchProbe(2, 8)
    # The first number of a patch means "left half", the second "right half": the cat's and the car's.
    states = torch.zeros(1, 64, 2)
    for end, o in enumerate(scene.objects):
        covered = probe._covered(painter, o)
        assert len(covered) > 2
        states[0, covered, end] = 100.0
    with torch.no_grad():
        for linear, classes in (
            (probe.names, [probe._names["cat"], probe._names["car"]]),
            (probe.colours, [probe._colours["black"], probe._colours["red"]]),
        ):
            linear.weight.zero_()
            linear.bias.zero_()
            linear.bias[0] = 50.0
            for end, one in enumerate(classes):
                linear.weight[one, end] = 1.0
        assert probe.loss(states, [scene], painter) < 1e-6
        assert probe.loss(states, [replace(scene, objects=scene.objects[:1])], painter) > 1


def test_the_decoder_begins_as_if_embeddings_were_scaled():
    embeddings = 3 + 2 * torch.randn(500, EMBED_DIM, generator=torch.Generator().manual_seed(0))
    decoder = Decoder()
    linear = decoder.text_projection.clip_image_embeddings_project_to_time_embeddings
    weight, bias = linear.weight.clone(), linear.bias.clone()
    decoder.begin(embeddings)
    scaled = (embeddings - embeddings.mean(0)) / embeddings.std(0)
    with torch.no_grad():
        assert torch.allclose(linear(embeddings), scaled @ weight.T + bias, atol=1e-4)


def test_rows_with_little_noise_and_pixels_of_objects_count_more():
    truth = torch.zeros(1, 3, 4, 4)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = 1
    on, off = truth.clone(), truth.clone()
    on[..., 0, 0], off[..., 1, 1] = 1, 1

    def error(guess: torch.Tensor, timestep: int) -> float:
        return float(weighted_error(guess, truth, torch.tensor([timestep]), mask, 4.0))

    assert error(on, 999) == pytest.approx(5 * error(off, 999))
    assert error(on, 0) == pytest.approx(LARGEST_ROW_WEIGHT * error(on, 999), rel=1e-3)


def test_the_pool_is_read_again_for_the_same_clip_alone(tmp_path: Path, painter: Painter):
    clip = load_clip()[0].eval().requires_grad_(False)
    first = cached_pool(tmp_path / "pool.pt", 3, clip, painter)
    written = (tmp_path / "pool.pt").stat().st_mtime_ns
    assert torch.equal(cached_pool(tmp_path / "pool.pt", 3, clip, painter).small, first.small)
    assert (tmp_path / "pool.pt").stat().st_mtime_ns == written
    clip.visual.proj += 1
    assert not torch.equal(cached_pool(tmp_path / "pool.pt", 3, clip, painter).embeddings, first.embeddings)


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, pool: ScenePool, painter: Painter
) -> UnclipModel:
    """What two steps of every recipe export."""
    # From the first step at full speed, or the last convolutions, which begin with zeros, would draw grey.
    options = Options(
        steps=2,
        batch_size=2,
        learning_rate=1e-2,
        warm_up_steps=1,
        ema_decay=0.0,
        log_every=1,
        measure_every=2,
        output_folder=tmp_path_factory.mktemp("out"),
    )
    reader = Reader(folder)

    probed = train_decoder.ProbedDecoder()
    probed.decoder.begin(pool.embeddings)
    exam = train_decoder.Exam(pool, reader)
    decoder = train(
        "decoder",
        probed,
        partial(train_decoder.losses_of_step, probed, pool, reader, painter, options.batch_size),
        options,
        measure=exam.measure,
    ).decoder
    write_part("decoder", decoder.unet, DECODER, folder=folder)
    write_part("text_proj", decoder.text_projection, TEXT_PROJECTION, folder=folder)

    probed_prior = train_prior.ProbedPrior(make_prior(pool.embeddings))
    average = train(
        "prior",
        probed_prior,
        partial(train_prior.losses_of_step, probed_prior, pool, reader, options.batch_size),
        options,
        measure=train_prior.Exam(pool, reader).measure,
    ).prior
    write_part("prior", average, PRIOR, folder=folder)

    first = UNet(SUPER_RES.network)
    for name, losses in (
        ("super_res_first", partial(train_super_res.losses_of_first, first)),
        ("super_res_last", partial(train_super_res.losses_of_last, first, UNet(SUPER_RES.network))),
    ):
        average = train(
            name,
            first,
            partial(losses, painter, options.batch_size, 32),
            options,
            measure=lambda _network: {},
        )
        write_part(name, average, SUPER_RES, folder=folder)
    return load_model(folder)


def test_what_the_recipes_export_draws_a_picture_from_text_and_from_a_picture(
    model: UnclipModel, painter: Painter
):
    few = GenerateJob("a red house", prior_num_steps=2, decoder_num_steps=2, super_res_num_steps=2)
    varied = replace(few, prompt="", image_prompts=(ImagePrompt(painter.paint(two_cats())),))
    pictures = generate(model, [few, varied])
    assert [picture.shape for picture in pictures] == [(128, 128, 3)] * 2
    assert not np.array_equal(*pictures)


def test_super_resolution_is_asked_at_the_timesteps_that_it_is_taught_at(painter: Painter):
    rng = random.Random(0)
    images, mask, enlarged = train_super_res.draw_crops(painter, rng, 2, 64)
    assert images.shape == enlarged.shape == (2, 3, 64, 64)
    assert mask.shape == (2, 1, 64, 64)
    # What interpolation gives is near the picture, and not the picture.
    assert 0 < float((images - enlarged).abs().mean()) < 0.3
    network = UNet(SUPER_RES.network)
    asked: list[float] = []
    network.register_forward_pre_hook(lambda _module, inputs: asked.append(float(inputs[1][0])))
    train_super_res.sharpen(network, network, enlarged)
    assert asked == [float(weights.timestep) for weights in train_super_res.STEPS]
