import pytest
import torch
from torch import nn

from services.pytorch.winograd import FEWEST_CHANNELS, MOST_TOGETHER, WinogradConv, use_winograd
from services.refiner.conversion.random_weights import write_random_part
from services.refiner.model import load_model
from services.refiner.networks.unet import UNet, UNetConfig
from tests.refiner.conftest import SMALL

# Relative to the largest value: the direct convolution is itself 2e-6 away from float64's.
RELATIVE = 5e-6
WIDE = UNetConfig(
    model_channels=FEWEST_CHANNELS, channel_mult=(1, 1), num_res_blocks=1, attention_ds=(2,), num_heads=4,
    context_dim=32, clip_embed_dim=16,
)  # fmt: skip


def assert_agrees(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


def picture(batch, channels, height, width):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height, width, generator=rng).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    return nn.Conv2d(40, 24, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (7, 4), (4, 5), (1, 1), (3, 3)])
def test_pictures_of_any_size_agree_with_the_direct_convolution(conv, height, width):
    x = picture(3, 40, height, width)
    assert_agrees(WinogradConv(conv)(x), conv(x))


def test_what_lies_with_channels_last_stays_so(conv):
    assert WinogradConv(conv)(picture(2, 40, 8, 8)).is_contiguous(memory_format=torch.channels_last)


def test_pictures_that_are_too_large_to_go_together_are_those_made_alone(conv):
    side = 2 * int((MOST_TOGETHER / 2 / 40) ** 0.5) - 2  # two fit, three do not
    x, winograd = picture(3, 40, side, side), WinogradConv(conv)
    alone = torch.cat([winograd(row) for row in x.split(1)])
    torch.testing.assert_close(winograd(x), alone, rtol=0, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 3, stride=2, padding=1),
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 3),
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 1),
        nn.Conv2d(FEWEST_CHANNELS, 4, 3, padding=1),
    ],
    ids=["of stride 2", "without padding", "of one pixel", "narrow"],
)
def test_other_convolutions_stay(other):
    network = nn.Sequential(other)
    use_winograd(network)
    assert network[0] is other


def test_a_network_predicts_the_same_noise_with_it():
    torch.manual_seed(0)
    network = UNet(WIDE).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():  # what starts training as a no-op
            parameter.normal_(std=0.02)
    inputs = picture(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 32)
    expected = network(*inputs)
    use_winograd(network)
    assert any(isinstance(module, WinogradConv) for module in network.modules())
    assert_agrees(network(*inputs), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wide_model_is_served_with_it(tmp_path, dtype):
    for part, config in {**SMALL, "unet": WIDE}.items():
        write_random_part(part, config, tmp_path / part)
    unet = load_model(tmp_path, device="cpu", dtype=dtype).unet
    assert any(isinstance(module, WinogradConv) for module in unet.modules())
