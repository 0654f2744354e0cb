"""The network against the published code's own numbers, and what must hold for any weights."""

import pytest
import torch
from safetensors.torch import load_file

from services.errors import ModelError
from services.upscaler.model import place
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.upscaler.networks.window_attention import partition
from tests.upscaler.conftest import Golden, random_swinir

ATOL = 2e-6


def test_the_network_gives_what_the_published_one_gives(golden: Golden) -> None:
    network = golden.network()
    for case in (case for case, kind in golden.kinds.items() if kind == "forward"):
        pictures = golden.vectors[f"{case}.in_u8"].float() / 255
        with torch.no_grad():
            enlarged = network(pictures)
        torch.testing.assert_close(enlarged, golden.vectors[f"{case}.out"], rtol=0, atol=ATOL)


def test_folded_biases_change_nothing(golden: Golden) -> None:
    network = golden.network()
    pictures = golden.vectors["fwd_16x24.in_u8"].float() / 255
    with torch.no_grad():
        before = network(pictures)
        network.fold_biases()
        assert torch.equal(network(pictures), before)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect", "nearest+conv"])
def test_training_and_serving_compute_the_same(upsampler: str) -> None:
    network = random_swinir(upsampler=upsampler, resi_connection="3conv")
    pictures = torch.rand(2, 3, 9, 12)
    trained = network.train()(pictures)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(pictures), trained.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect", "nearest+conv"])
def test_a_gradient_reaches_every_parameter(upsampler: str) -> None:
    network = random_swinir(upsampler=upsampler).train()
    network(torch.rand(1, 3, 8, 8)).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_training_goes_on_after_the_network_has_served() -> None:
    network = random_swinir()
    network.fold_biases()
    with torch.inference_mode():
        network(torch.rand(1, 3, 8, 8))
    network.train()(torch.rand(1, 3, 8, 8)).sum().backward()
    assert (
        network.get_parameter("layers.0.residual_group.blocks.0.attn.relative_position_bias_table").grad
        is not None
    )


@pytest.mark.parametrize(
    ("upsampler", "upscale"),
    [("pixelshuffle", 2), ("pixelshuffle", 3), ("pixelshuffle", 8), ("pixelshuffledirect", 2)]
    + [("pixelshuffledirect", 3), ("nearest+conv", 2)],
)
def test_a_picture_grows_by_the_factor_of_the_network(upsampler: str, upscale: int) -> None:
    network = random_swinir(upsampler=upsampler, upscale=upscale)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * upscale, 7 * upscale)


def test_each_picture_of_a_batch_is_enlarged_by_itself() -> None:
    network = random_swinir(depths=(2, 2), num_heads=(2, 3))
    pictures = torch.rand(3, 3, 8, 12)
    with torch.no_grad():
        batched = network(pictures)
        alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-6)


def test_every_pixel_is_in_exactly_one_window() -> None:
    windows = partition(2, 12, 8, 4, 2, torch.device("cpu"))
    rows = torch.cat([kind.rows.flatten() for kind in windows])
    assert torch.equal(rows.sort().values, torch.arange(2 * 12 * 8))


def test_bfloat16_weights_stay_close_to_float32() -> None:
    network = random_swinir(upsampler="nearest+conv")
    pictures = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        exact = network(pictures)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.to(torch.bfloat16)
        rough = network(pictures)
    assert rough.dtype == torch.float32
    assert 1e-5 < (rough - exact).abs().max() < 0.05


def test_half_of_the_reference_settings_are_enough_for_a_configuration() -> None:
    raw = {"upscale": 2, "upsampler": "pixelshuffle", "embed_dim": 8, "depths": [1], "num_heads": [1]}
    assert SwinIRConfig.from_json(raw) == SwinIRConfig(2, "pixelshuffle", 8, (1,), (1,))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"upsampler": ""}, "upsampler"),
        ({"upscale": 5}, "upscale"),
        ({"in_chans": 1}, "in_chans"),
        ({"img_range": 255.0}, "img_range"),
        ({"img_size": 8}, "shifted"),
        ({"num_heads": [5]}, "embed_dim"),
        ({"depths": [1, 1]}, "depths"),
        ({"depths": "deep"}, "configuration"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_configuration_that_is_no_swinir_is_refused_with_the_reason(
    change: dict[str, object], complaint: str
) -> None:
    raw = {"upscale": 4, "upsampler": "pixelshuffle", "embed_dim": 8, "depths": [1], "num_heads": [1]}
    with pytest.raises(ModelError, match=complaint):
        SwinIRConfig.from_json(raw | change)


def test_parameter_names_are_those_of_the_checkpoints(golden: Golden) -> None:
    published = {n for n in load_file(golden.weights_file) if not n.endswith(("attn_mask", "position_index"))}
    assert SwinIR(golden.config).state_dict().keys() == published


@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_float16_stands_a_residual_stream_far_beyond_its_range(resi_connection: str) -> None:
    network = random_swinir(resi_connection=resi_connection, depths=(4, 2), num_heads=(2, 2))
    with torch.no_grad():
        for block in network.layers[0].residual_group.blocks:
            block.mlp.fc2.bias.fill_(50_000.0)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        largest = []
        hook = network.layers[0].residual_group.register_forward_hook(
            lambda _module, _inputs, stream: largest.append(stream.abs().max())
        )
        exact = network(pictures)
        hook.remove()
        rough = place(network, torch.device("cpu"), "float16")(pictures)
    assert largest[0] > 2 * torch.finfo(torch.float16).max
    assert rough.isfinite().all()
    torch.testing.assert_close(rough, exact, rtol=0, atol=0.02 * float(exact.abs().max()))
