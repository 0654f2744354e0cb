import pytest
import torch

from services.pytorch.adm import timestep_embedding
from services.refiner.networks.unet import UNet, UNetConfig

CONFIG = UNetConfig(model_channels=32, channel_mult=(1, 1, 2, 2), context_dim=64, clip_embed_dim=48)
INPAINT = UNetConfig(**{**vars(CONFIG), "in_channels": 8})
# Relative to the largest value of each array: float32 sums in another order.
RELATIVE = 1e-5


def assert_agrees(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


@pytest.fixture(scope="module")
def arrays(golden):
    return golden.arrays("unet_tiny")


@pytest.fixture(scope="module")
def inputs(arrays):
    return arrays["x"], arrays["timesteps"], arrays["context"]


@pytest.fixture(scope="module")
def unet(golden):
    weights = golden.weights("unet_tiny")
    del weights["inpaint:input_blocks.0.0.weight"]
    network = UNet(CONFIG)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inpainting_unet(golden):
    weights = golden.weights("unet_tiny")
    weights["input_blocks.0.0.weight"] = weights.pop("inpaint:input_blocks.0.0.weight")
    network = UNet(INPAINT)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def test_the_timestep_embedding_agrees_with_the_reference(arrays):
    assert_agrees(timestep_embedding(arrays["timesteps"], CONFIG.model_channels), arrays["t_emb"])


def test_the_noise_agrees_with_the_reference_without_clip(unet, inputs, arrays):
    assert_agrees(unet(*inputs), arrays["out_noclip"])


def test_the_noise_agrees_with_the_reference_with_clip(unet, inputs, arrays):
    assert_agrees(unet(*inputs, arrays["clip_embed"]), arrays["out_clip"])


def test_the_noise_of_a_rectangle_agrees_with_the_reference(unet, arrays):
    rows = (arrays[name][:2] for name in ("timesteps", "context", "clip_embed"))
    assert_agrees(unet(arrays["x_rect"], *rows), arrays["out_rect"])


def test_the_noise_agrees_with_the_reference_when_inpainting(inpainting_unet, inputs, arrays):
    assert_agrees(
        inpainting_unet(*inputs, arrays["clip_embed"], arrays["image_embed"]), arrays["out_inpaint"]
    )


def test_an_inpainting_network_without_a_picture_sees_zeros(inpainting_unet, inputs, arrays):
    without = inpainting_unet(*inputs, arrays["clip_embed"])
    torch.testing.assert_close(
        without, inpainting_unet(*inputs, arrays["clip_embed"], torch.zeros_like(arrays["image_embed"]))
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("act_in0", "input_blocks.0"),
        ("act_in1", "input_blocks.1"),
        ("act_in3", "input_blocks.3"),
        ("act_in4", "input_blocks.4"),
        ("act_in11", "input_blocks.11"),
        ("act_mid", "middle_block"),
        ("act_out2", "output_blocks.2"),
        ("act_out5", "output_blocks.5"),
    ],
)
def test_inner_activations_agree_with_the_reference(unet, inputs, arrays, name, layer):
    seen = []
    hook = unet.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    unet(*inputs, arrays["clip_embed"])
    hook.remove()
    assert_agrees(seen[0][:1], arrays[name])


def test_every_parameter_gets_a_gradient():
    config = UNetConfig(
        in_channels=8, out_channels=8, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_ds=(1, 2), num_heads=4, context_dim=16, guided_channels=8,
    )  # fmt: skip
    network = UNet(config)
    network(
        torch.randn(2, 8, 8, 8), torch.tensor([3.0, 999.0]), torch.randn(2, 5, 16)
    ).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_an_untrained_network_predicts_no_noise():
    network = UNet(UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, context_dim=16))
    noise = network(torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 16))
    assert not noise.any()
