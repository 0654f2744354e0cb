"""Two steps of each of the refiner's and the upscaler's recipes, at toy size, with stand-in sprites."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from services.pytorch.clip import Clip
from services.refiner.model import load_part
from services.refiner.networks.autoencoder import Autoencoder, AutoencoderConfig
from services.refiner.networks.text_encoder import TextEncoder
from services.refiner.networks.unet import UNet
from services.refiner.text.tokenizer import Tokenizer, read_tokenizer
from services.upscaler.networks.swinir import SwinIR
from training.export import load_exported, write_part
from training.images import Picture, sample_either
from training.loop import Measures, Options, learning_rate, rng_of_step, share_done, train
from training.refiner import (
    latent_pool,
    train_autoencoder,
    train_clip,
    train_text_encoder,
    train_unet,
    train_wordpieces,
)
from training.refiner.degradations import soften
from training.upscaler import train_swinir
from training.world.drawing import Painter
from training.world.scenes import NARROW, Scene, SceneObject, sample_scene, sample_scenes
from training.world.sprites import stand_in_sprites

SMALL_AUTOENCODER = replace(train_autoencoder.CONFIG, ch=32, ch_mult=(1, 1, 1), image_size=32)


@pytest.fixture
def painter() -> Painter:
    return Painter(stand_in_sprites(), size=32)


@pytest.fixture
def two_steps(tmp_path: Path) -> Options:
    return Options(
        steps=2, batch_size=2, ema_decay=0.5, log_every=1, measure_every=2, output_folder=tmp_path / "out"
    )


def logged(options: Options, name: str) -> list[Measures]:
    lines = (options.output_folder / name / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_autoencoder_takes_two_steps_and_measures_objects(painter: Painter, two_steps: Options):
    scenes = sample_scenes(2, 1, held_out=True)
    network = Autoencoder(SMALL_AUTOENCODER)
    options = replace(two_steps, from_weights=True)  # from the first step with crops of the later size
    before = [p.clone() for p in network.parameters()]
    crops = Painter(stand_in_sprites(), size=64)
    train(
        "autoencoder",
        network,
        partial(train_autoencoder.losses_of_step, network, crops, options),
        options,
        measure=partial(train_autoencoder.measure, painter, scenes),
        sheet=partial(train_autoencoder.draw_sheet, painter, scenes),
    )
    assert logged(options, "autoencoder")[-1]["object_psnr_db"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert (options.output_folder / "autoencoder" / "sheet.png").exists()


def test_an_interrupted_run_ends_where_an_unbroken_one_does(painter: Painter, two_steps: Options):
    def run(name: str, steps: list[int]) -> Autoencoder:
        torch.manual_seed(0)
        network = Autoencoder(SMALL_AUTOENCODER)
        for stop in steps:
            # The rate depends on the number of steps: held constant, so that only resuming differs.
            options = replace(two_steps, steps=stop, resume=True, measure_every=1, learning_rate=0.0)
            train(
                name,
                network,
                partial(train_autoencoder.losses_of_step, network, painter, replace(two_steps, steps=4)),
                options,
                measure=lambda _: {},
            )
        return network

    unbroken, interrupted = run("unbroken", [2]), run("interrupted", [1, 2])
    assert [r["loss"] for r in logged(two_steps, "unbroken")] == pytest.approx(
        [r["loss"] for r in logged(two_steps, "interrupted")]
    )
    for a, b in zip(unbroken.parameters(), interrupted.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_text_encoder_takes_two_steps(two_steps: Options):
    vocab = train_wordpieces.learn_wordpieces(200)
    tokenizer = Tokenizer(train_wordpieces.bert_tokenizer(vocab), train_text_encoder.NUM_TOKENS)
    reader = train_text_encoder.Reader(TextEncoder(replace(train_text_encoder.CONFIG, n_embed=32, n_layer=1)))
    train(
        "text_encoder",
        reader,
        partial(train_text_encoder.losses_of_step, reader, tokenizer, 4),
        two_steps,
        measure=partial(train_text_encoder.measure, tokenizer),
    )
    assert 0 <= logged(two_steps, "text_encoder")[-1]["place"] <= 1


def test_clip_takes_two_steps_and_ranks_eight(two_steps: Options):
    merges = train_wordpieces.learn_merges(200)
    tokenizer = train_clip.make_tokenizer(merges)
    config = replace(
        train_clip.make_config(len(train_wordpieces.clip_vocab(merges))),
        image_size=32,
        vision_patch_size=8,
        vision_layers=1,
    )
    probed, painter = train_clip.ProbedClip(Clip(config)), Painter(stand_in_sprites(), size=32)
    train(
        "clip",
        probed,
        partial(train_clip.losses_of_step, probed, tokenizer, painter, 4),
        two_steps,
        measure=lambda average: train_clip.measure(tokenizer, painter, 2, average.clip),
    )
    assert 0 <= logged(two_steps, "clip")[-1]["best_of_8_near"] <= 1


def test_a_near_miss_is_reported_by_other_words():
    rng = random.Random(1)
    for scene in sample_scenes(100, seed=4):
        missed = train_clip.near_miss(scene, rng, NARROW)

        assert sorted(map(str, missed.objects)) != sorted(map(str, scene.objects))
        assert len({o.slot for o in missed.objects}) == len(missed.objects) > 0
        assert replace(missed, objects=()) == replace(scene, objects=())


def test_an_embedding_is_asked_for_what_is_there():
    torch.manual_seed(0)
    red, blue = (
        replace(scene, objects=(SceneObject("car", colour, "medium", "left"),))
        for scene in sample_scenes(1, seed=4)
        for colour in ("red", "blue")
    )
    probe, embeds = train_clip.ContentProbe(8), torch.eye(8)[:2]
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        probe.loss(embeds, [red, blue]).backward()
        optimizer.step()

    with torch.no_grad():
        right, swapped = (probe.loss(embeds, scenes) for scenes in ([red, blue], [blue, red]))

    assert float(right) < 0.1 < 1 < float(swapped)


def test_the_unet_takes_two_steps_and_refines(two_steps: Options):
    painter = Painter(stand_in_sprites(), size=32)
    coder = Autoencoder(SMALL_AUTOENCODER).requires_grad_(False)
    vocab = train_wordpieces.learn_wordpieces(200)
    tokenizer = Tokenizer(train_wordpieces.bert_tokenizer(vocab), train_text_encoder.NUM_TOKENS)
    encoder = TextEncoder(replace(train_text_encoder.CONFIG, n_embed=32, n_layer=1)).requires_grad_(False)
    pool = latent_pool.encode_scenes(sample_scenes(3, 0), coder, painter, soften, 0)
    teacher = train_unet.DiffusionLoss(pool, encoder, tokenizer)
    network = UNet(replace(train_unet.CONFIG, model_channels=32, context_dim=32))
    exam = train_unet.UNetEvaluation(painter, pool, coder, teacher)
    train(
        "unet",
        network,
        partial(train_unet.losses_of_step, network, teacher, 2),
        two_steps,
        measure=exam.measure,
        sheet=exam.sheet,
    )
    assert logged(two_steps, "unet")[-1]["loss_shuffled"] > 0


def test_swinir_takes_two_steps(two_steps: Options):
    corpus = train_swinir.make_corpus(
        stand_in_sprites(), None, 2, seed=0, held_out=False, sizes=(128, 64, 64)
    )
    network = SwinIR(replace(train_swinir.CONFIG, embed_dim=8, depths=(2,), num_heads=(2,)))
    train(
        "swinir",
        network,
        partial(train_swinir.losses_of_step, network, corpus, 2),
        two_steps,
        measure=partial(train_swinir.measure, corpus, {}),
        sheet=partial(train_swinir.draw_sheet, corpus),
    )
    assert {"sharp_over_lanczos_db", "refined_slopes_of_truth"} <= logged(two_steps, "swinir")[-1].keys()


def test_a_deepened_upscaler_gives_the_same_pictures():
    network = SwinIR(replace(train_swinir.CONFIG, embed_dim=8, depths=(2,), num_heads=(2,))).eval()
    deeper = train_swinir.deepened(network, (4,)).eval()
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert deeper.config.depths == (4,)
    assert np.array_equal(train_swinir.enlarge(deeper, picture), train_swinir.enlarge(network, picture))


def test_the_upscaler_learns_on_what_the_refiner_made_and_keeps_it(tmp_path: Path):
    asked: list[int] = []

    def refine_scenes(scenes: Sequence[Scene], _: random.Random) -> list[Picture]:
        asked.append(len(scenes))
        return [np.full((32, 32, 3), i, np.uint8) for i in range(len(scenes))]

    for _ in range(2):
        corpus = train_swinir.make_corpus(
            stand_in_sprites(),
            refine_scenes,
            3,
            seed=0,
            held_out=False,
            sizes=(128, 64, 64),
            cache=tmp_path / "refined.pt",
        )
        assert [int(pair.small[0, 0, 0]) for pair in corpus.refined] == [0, 1, 2]
        assert np.array_equal(corpus.refined[2].large, corpus.sharp[2].large)
    assert asked == [3]


def test_swinir_starts_no_worse_than_a_linear_filter():
    corpus = train_swinir.make_corpus(
        stand_in_sprites(), None, 6, seed=0, held_out=False, sizes=(128, 64, 64)
    )
    network = SwinIR(train_swinir.CONFIG).eval()
    train_swinir.start_as_linear_filter(network, corpus)
    assert train_swinir.measure(corpus, {}, network)["sharp_over_lanczos_db"] > -1


def test_the_noise_to_answer_leads_from_a_degraded_latent_to_the_true_one():
    scenes = sample_scenes(2, 0)
    pool = latent_pool.Pool(scenes, *torch.randn(2, 2, 8, 4, 4), torch.ones(2, 1, 4, 4))
    teacher = train_unet.DiffusionLoss(pool, None, None)  # type: ignore[arg-type]
    timesteps = torch.tensor([300, 300])
    x, answer = teacher.noisy([0, 1], timesteps, torch.tensor([400, 0]))
    alpha = torch.tensor(train_unet.train_alphas_cumprod()[300]).float()
    torch.testing.assert_close((x - (1 - alpha).sqrt() * answer) / alpha.sqrt(), pool.true, atol=1e-4, rtol=0)


def test_refining_begins_with_the_sketch_itself():
    pool = latent_pool.Pool(sample_scenes(1, 0), *torch.randn(2, 1, 8, 4, 4), torch.ones(1, 1, 4, 4))
    teacher = train_unet.DiffusionLoss(pool, None, None)  # type: ignore[arg-type]
    start, alpha = torch.tensor([400]), torch.tensor(train_unet.train_alphas_cumprod()[400]).float()
    torch.manual_seed(1)
    x, _ = teacher.noisy([0], start, start)
    torch.manual_seed(1)
    sketch = alpha.sqrt() * pool.degraded + (1 - alpha).sqrt() * torch.randn(pool.degraded.shape)
    torch.testing.assert_close(x, sketch, atol=1e-4, rtol=0)


def test_the_decoder_alone_learns_and_its_latents_stay(painter: Painter, two_steps: Options):
    network = Autoencoder(SMALL_AUTOENCODER)
    for part in (network.encoder, network.quant_conv):
        part.requires_grad_(False)
    pool = latent_pool.encode_scenes(sample_scenes(3, 0), network, painter, soften, 0)
    encoded, decoder = latent_pool.fingerprint(network), network.decoder.conv_out.weight.clone()
    train(
        "autoencoder",
        network,
        partial(train_autoencoder.decoder_losses_of_step, network, painter, pool, two_steps),
        two_steps,
        measure=lambda _: {},
    )
    assert latent_pool.fingerprint(network) == encoded
    assert not torch.equal(network.decoder.conv_out.weight, decoder)


def test_a_time_budget_ends_a_run_and_its_learning_rate(two_steps: Options):
    options = replace(two_steps, steps=100, minutes=2.0, warm_up_steps=1)
    assert share_done(10, 60.0, options) == 0.5
    assert share_done(90, 60.0, options) == 0.9
    assert share_done(10, 240.0, options) == 1
    rates = [learning_rate(5, share, options) for share in (0.0, 0.5, 1.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(options.learning_rate / 100)


def test_a_near_miss_changes_only_the_objects():
    rng = random.Random(0)
    for _ in range(50):
        scene = sample_scene(rng, NARROW)
        missed = train_clip.near_miss(scene, rng, NARROW)
        assert missed.objects != scene.objects
        assert replace(missed, objects=scene.objects) == scene


def test_an_exported_part_is_what_the_service_loads(tmp_path: Path):
    network = Autoencoder(SMALL_AUTOENCODER)
    write_part("refiner", "autoencoder", network, asdict(network.config), folder=tmp_path)
    served = load_part(tmp_path / "autoencoder", "autoencoder")
    trained_on = load_exported("refiner", "autoencoder", Autoencoder, AutoencoderConfig, folder=tmp_path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(served.state_dict()[name], tensor.half().float())
        assert torch.equal(trained_on.state_dict()[name], tensor.half().float())


def test_the_learned_vocabularies_are_files_that_the_service_reads(tmp_path: Path):
    vocab, merges = train_wordpieces.learn_wordpieces(200), train_wordpieces.learn_merges(200)
    for part, files in (
        ("bert", train_wordpieces.bert_files(vocab)),
        ("clip", train_wordpieces.clip_files(merges)),
    ):
        (tmp_path / part).mkdir()
        for name, text in files.items():
            (tmp_path / part / name).write_text(text, "utf-8")
    bert = read_tokenizer(tmp_path / "bert", num_tokens=32, vocab_size=len(vocab))
    clips = read_tokenizer(
        tmp_path / "clip", num_tokens=32, vocab_size=len(train_wordpieces.clip_vocab(merges))
    )
    text = "a red house, by the sea"
    assert np.array_equal(
        bert.encode([text]), Tokenizer(train_wordpieces.bert_tokenizer(vocab), 32).encode([text])
    )
    assert np.array_equal(clips.encode([text]), train_clip.make_tokenizer(merges).encode([text]))


def test_a_step_draws_the_same_scenes_again():
    first = [sample_either(rng_of_step("x", 5)) for _ in range(2)]
    assert first[0] == first[1]
