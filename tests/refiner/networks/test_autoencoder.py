import pytest
import torch

from services.refiner.networks.autoencoder import Autoencoder, AutoencoderConfig

# Largest difference seen between two float32 implementations here: 4e-6 on values up to 5.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def arrays(golden):
    return golden.arrays("vae_tiny")


@pytest.fixture(scope="module")
def autoencoder(golden):
    network = Autoencoder(AutoencoderConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1))
    network.load_state_dict(golden.weights("vae_tiny"))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["mean", "logvar"])
def test_encoding_agrees_with_the_reference(autoencoder, arrays, name):
    posterior = autoencoder.encode(arrays["image"])
    torch.testing.assert_close(getattr(posterior, name), arrays[name], rtol=0, atol=TOLERANCE)


def test_a_latent_sample_agrees_with_the_reference(autoencoder, arrays):
    sample = autoencoder.encode(arrays["image"]).sample(arrays["sample_noise"])
    torch.testing.assert_close(sample, arrays["sample"], rtol=0, atol=TOLERANCE)


def test_decoding_agrees_with_the_reference(autoencoder, arrays):
    torch.testing.assert_close(autoencoder.decode(arrays["z"]), arrays["decoded"], rtol=0, atol=TOLERANCE)


def test_a_wild_logvar_is_clamped(autoencoder, arrays):
    logvar = autoencoder.encode(arrays["image"] * 1e6).logvar
    assert logvar.min() >= -30
    assert logvar.max() <= 20


def test_every_parameter_gets_a_gradient():
    network = Autoencoder(
        AutoencoderConfig(image_size=32, ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8)
    )
    reconstruction, posterior = network(torch.zeros(1, 3, 32, 32), torch.ones(1, 4, 16, 16))
    (reconstruction.square().mean() + posterior.kl().mean()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
