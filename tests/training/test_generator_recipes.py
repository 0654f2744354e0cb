"""The generator's recipes: two steps of each run, resuming goes on, and the exported network is the trained one."""

import json
import random
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from services.generator.dalle.model import load_model
from services.generator.dalle.networks import dalle, vqgan
from services.weights.model_folder import open_model
from training import checkpoint
from training.generator import dalle_torch, train_dalle, train_vqgan as vqgan_recipe, vqgan_torch
from training.generator.dalle_torch import Dalle, text_mask
from training.generator.export import export
from training.generator.pretrain_text_encoder import pretrain
from training.generator.slot_probe import SlotProbe
from training.generator.token_pool import TokenPool
from training.generator.train_tokenizer import (
    encode,
    extend_embeddings,
    extend_tokenizer,
    train_tokenizer,
)
from training.generator.vqgan_torch import Vqgan
from training.refiner.degradations import retell_tokens
from training.world.drawing import Painter
from training.world.painters import Painters
from training.world.scenes import NARROW, WIDE, sample_scenes
from training.world.sprites import stand_in_sprites

DALLE = replace(
    dalle_torch.TINY,
    d_model=32,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=48,
    image_vocab_size=64,
    decoder_start_token_id=64,
    image_length=64,
)
VQGAN = replace(vqgan_torch.TINY, n_embed=64, ch_mult=(1, 1, 1, 1), resolution=64)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(stand_in_sprites(), 64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(num_captions=500)


@pytest.fixture
def networks() -> tuple[Dalle, Vqgan]:
    torch.manual_seed(0)
    return Dalle(DALLE), Vqgan(VQGAN).eval()


def vqgan_trainer(painter: Painter, network: Vqgan, *, steps: int = 4) -> vqgan_recipe.Trainer:
    recipe = vqgan_recipe.Recipe(steps=steps, batch=2, crop=32, plain_share=0.5, whole_share=0.25)
    batches = vqgan_recipe.Batches(painter, NARROW, seed=0)
    return vqgan_recipe.Trainer(network, batches, recipe, decoder_only=False)


def generator_trainer(
    painter: Painter, tokenizer: Tokenizer, networks: tuple[Dalle, Vqgan]
) -> train_dalle.Trainer:
    network, codes = networks
    pool = TokenPool(codes, Painters(painter), NARROW, seed=0, capacity=8)
    recipe = train_dalle.Recipe(steps=4, batch=4, fresh=2, probe_layer=0)
    return train_dalle.Trainer(network, tokenizer, pool, NARROW, recipe)


def test_the_vqgan_trains_from_a_plain_autoencoder_to_codes(painter: Painter, networks: tuple[Dalle, Vqgan]):
    trainer = vqgan_trainer(painter, networks[1])

    losses = [trainer.train_step() for _ in range(4)]

    assert np.isfinite(losses).all()
    assert trainer.quantizes


def test_a_vqgan_checkpoint_is_resumed_where_it_was(
    painter: Painter, networks: tuple[Dalle, Vqgan], tmp_path: Path
):
    trainer = vqgan_trainer(painter, networks[1])
    trainer.train_step()
    checkpoint.save(tmp_path / "vqgan.pt", **trainer.state())
    resumed = vqgan_trainer(painter, Vqgan(VQGAN))

    resumed.resume(checkpoint.load(tmp_path / "vqgan.pt"))

    assert resumed.step == 1
    for name, tensor in trainer.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], tensor)


def test_training_the_decoder_alone_keeps_the_tokens(painter: Painter, networks: tuple[Dalle, Vqgan]):
    network = networks[1]
    pixels = vqgan_recipe.to_pixels(np.stack([painter.paint(s) for s in sample_scenes(2, seed=1)]))
    before = network.tokens(network.encode(pixels))
    trainer = vqgan_recipe.Trainer(
        network,
        vqgan_recipe.Batches(painter, NARROW, seed=0),
        vqgan_recipe.Recipe(steps=2, batch=2, crop=32),
        decoder_only=True,
    )

    trainer.train_step()

    assert torch.equal(network.tokens(network.encode(pixels)), before)


def test_the_text_encoder_pretrains(tokenizer: Tokenizer, networks: tuple[Dalle, Vqgan]):
    network = networks[0]
    before = network.encoder.embed_tokens.weight.clone()

    pretrain(network, tokenizer, NARROW, steps=2, batch=4)

    assert not torch.equal(network.encoder.embed_tokens.weight, before)


def test_the_transformer_trains_on_tokens_made_as_it_goes(
    painter: Painter, tokenizer: Tokenizer, networks: tuple[Dalle, Vqgan]
):
    trainer = generator_trainer(painter, tokenizer, networks)

    losses = [trainer.train_step() for _ in range(2)]

    assert all(np.isfinite(list(one.values())).all() for one in losses)
    assert len(trainer.pool) == 4


def test_a_token_is_asked_for_the_object_that_stands_in_its_third():
    probe = SlotProbe(NARROW, width=len(NARROW.objects) + 1, side=8)
    scene = next(s for s in sample_scenes(50, seed=1) if len({o.name for o in s.objects}) == 3)
    # A decoder that knows: the class of each token's name, and nothing else.
    torch.nn.init.eye_(probe.names.weight)
    names, _ = probe.labels([scene])
    hidden = torch.nn.functional.one_hot(names, len(NARROW.objects) + 1).float()

    with torch.no_grad():
        right_loss, wrong_loss = (probe.loss(100 * h, [scene]) for h in (hidden, hidden.flip(1)))

    assert names.unflatten(1, (8, 8))[0, 0].unique_consecutive(return_counts=True)[1].tolist() == [3, 2, 3]
    assert float(right_loss) < float(wrong_loss) - 10


def test_what_is_above_another_is_asked_for_in_the_upper_half():
    probe = SlotProbe(WIDE, width=8, side=8)
    scene = next(s for s in sample_scenes(3000, seed=1, world=WIDE) if s.objects[-1].slot == "above")

    names, _ = probe.labels([scene])

    center = names.unflatten(1, (8, 8))[0, :, 3].tolist()
    assert center == [center[0]] * 4 + [center[-1]] * 4
    assert center[0] != center[-1]


def test_an_extended_tokenizer_keeps_its_pieces_and_is_shorter_on_new_words(tokenizer: Tokenizer):
    old = tokenizer.get_vocab()

    extended = extend_tokenizer(tokenizer, ["an axolotl beside a quokka"] * 3, len(old) + 40)

    assert old.items() <= extended.get_vocab().items()
    assert len(extended.encode("an axolotl").ids) < len(tokenizer.encode("an axolotl").ids)
    assert extended.encode("a red house").ids == tokenizer.encode("a red house").ids


def test_a_new_piece_starts_as_the_mean_of_its_two(tokenizer: Tokenizer):
    old = tokenizer.get_vocab()
    extended = extend_tokenizer(tokenizer, ["zzz"] * 3, len(old) + 1)
    embeddings = np.arange(2.0 * len(old)).reshape(-1, 2)

    found = extend_embeddings({"encoder.embed_tokens": embeddings}, extended)["encoder.embed_tokens"]

    first, second = json.loads(extended.to_str())["model"]["merges"][-1]
    np.testing.assert_array_equal(found[:-1], embeddings)
    np.testing.assert_array_equal(found[-1], (embeddings[old[first]] + embeddings[old[second]]) / 2)


def test_a_pool_of_tokens_is_restored_as_it_was(
    painter: Painter, networks: tuple[Dalle, Vqgan], tmp_path: Path
):
    pool = TokenPool(networks[1], Painters(painter), NARROW, seed=0, capacity=8)
    pool.grow(3)
    pool.save(tmp_path / "tokens.npz")
    restored = TokenPool(networks[1], Painters(painter), NARROW, seed=0, capacity=8)

    restored.restore(tmp_path / "tokens.npz")

    drawn, expected = (p.draw(3, random.Random(1)) for p in (restored, pool))
    assert drawn[0] == expected[0]
    assert torch.equal(drawn[1], expected[1])
    assert torch.equal(drawn[2], expected[2])


def test_a_pool_of_another_seed_is_refused(painter: Painter, networks: tuple[Dalle, Vqgan], tmp_path: Path):
    pool = TokenPool(networks[1], Painters(painter), NARROW, seed=0, capacity=8)
    pool.grow(1)
    pool.save(tmp_path / "tokens.npz")

    with pytest.raises(ValueError, match="scenes of seed 0, not 1; give that --seed, or delete it"):
        TokenPool(networks[1], Painters(painter), NARROW, seed=1, capacity=8).restore(tmp_path / "tokens.npz")


def test_tokens_are_reported_anew_in_part_by_what_the_transformer_expects(networks: tuple[Dalle, Vqgan]):
    network = networks[0]
    text_tokens = torch.full((4, DALLE.max_text_length), 5)
    image_tokens = torch.full((4, 64), 7)
    with torch.no_grad():
        network.lm_head.weight.zero_()
        network.decoder.final_norm.bias.fill_(1.0)
        network.lm_head.weight[9] = 10.0

    retold = retell_tokens(network, text_tokens, image_tokens, torch.Generator().manual_seed(0))

    assert set(retold.flatten().tolist()) == {7, 9}
    shares = (retold == 9).float().mean(1)
    assert (shares > 0).all()
    assert (shares < 1).all()


def test_the_exported_transformer_is_the_trained_one(
    tokenizer: Tokenizer, networks: tuple[Dalle, Vqgan], tmp_path: Path
):
    network, codes = networks
    # As trained weights are: no norm at its initial zeros and ones; exact in float16.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
    export(network, codes, NARROW, tmp_path)
    text_tokens = encode(tokenizer, ["a red house by the sea", "two cats"], DALLE.max_text_length)
    image_tokens = torch.randint(64, (2, DALLE.image_length))
    start = torch.full((2, 1), DALLE.decoder_start_token_id)

    model = load_model(open_model(str(tmp_path), "generator")[0])
    mask = jnp.asarray(text_mask(text_tokens)[:, 0, 0].numpy())
    hidden = dalle.encode(model.dalle_params, model.dalle_config, jnp.asarray(text_tokens.numpy()), mask)
    prompt = dalle.project_cross_attention(model.dalle_params, model.dalle_config, hidden, mask)
    inputs = torch.cat((start, image_tokens[:, :-1]), 1)
    logits = dalle.decode(model.dalle_params, model.dalle_config, jnp.asarray(inputs.numpy()), prompt)

    expected = network(text_tokens, image_tokens)[..., : DALLE.image_vocab_size]
    np.testing.assert_allclose(np.asarray(logits), expected.detach().numpy(), atol=2e-4)


def test_the_exported_vqgan_is_the_trained_one(networks: tuple[Dalle, Vqgan], tmp_path: Path):
    network, codes = networks
    with torch.no_grad():
        for tensor in codes.state_dict().values():
            tensor.copy_((tensor + 0.05 * torch.randn_like(tensor)).half().float())
    export(network, codes, NARROW, tmp_path)
    pixels = torch.rand(2, 3, 64, 64)

    model = load_model(tmp_path)
    vectors = vqgan.encode(model.vqgan_params, jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    decoded = vqgan.decode(model.vqgan_params, vectors)

    with torch.no_grad():
        expected = codes.encode(pixels)
        np.testing.assert_allclose(np.asarray(vectors), expected.permute(0, 2, 3, 1).numpy(), atol=1e-3)
        np.testing.assert_allclose(
            np.asarray(decoded), codes.decode(expected).permute(0, 2, 3, 1).numpy(), atol=1e-3
        )


def test_exported_weights_can_be_trained_on(networks: tuple[Dalle, Vqgan], tmp_path: Path):
    export(*networks, NARROW, tmp_path)
    network = Dalle(DALLE)

    checkpoint.load_flax_tensors(network, checkpoint.read_tensors(tmp_path / "dalle" / "model.safetensors"))

    for name, tensor in networks[0].state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor.half().float())
