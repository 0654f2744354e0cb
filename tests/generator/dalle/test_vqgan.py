import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from services.errors import ModelError
from services.generator.dalle.conversion.random_weights import write_random_vqgan
from services.generator.dalle.model import load_vqgan
from services.generator.dalle.networks import vqgan, winograd
from services.generator.dalle.parameters import load_parameters
from tests.generator.conftest import VQGAN_CONFIG


def test_a_code_is_its_own_nearest_code(model):
    image_tokens = jnp.arange(64).reshape(4, 16)
    codes = vqgan.look_up(model.vqgan_params, image_tokens)
    assert codes.shape == (4, 4, 4, 4)
    np.testing.assert_array_equal(vqgan.quantize(model.vqgan_params, codes), image_tokens)


def test_pixels_are_clipped_and_truncated():
    pixels = jnp.asarray([-0.5, 0.0, 0.5, 0.999, 1.0, 2.0]).reshape(1, 1, 2, 3)
    assert vqgan.to_uint8(pixels).ravel().tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize(("height", "width"), [(8, 12), (80, 4), (70, 8)])
def test_a_convolution_with_half_the_products_is_the_convolution(height, width):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 5, 7), np.float32)
    x = jnp.asarray(rng.standard_normal((2, height, width, 5), np.float32))
    plain = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=winograd.LAYOUT)
    np.testing.assert_allclose(
        winograd.convolve(jnp.asarray(winograd.transform(kernel)), x), plain, atol=1e-4
    )


def test_wide_blocks_draw_the_same_with_half_the_products(tmp_path):
    write_random_vqgan(tmp_path, VQGAN_CONFIG | {"ch": 128})
    halved, config = load_vqgan(tmp_path)
    loaded = load_parameters(tmp_path, vqgan.parameter_shapes(config))
    plain = jax.tree.map(jnp.asarray, vqgan.group_norms(loaded, config))
    codes = vqgan.look_up(plain, jnp.arange(16)[None])
    decode = jax.jit(vqgan.decode)
    assert "points" in halved["decoder"]["mid"]["block_1"]["conv1"]
    np.testing.assert_allclose(decode(halved, codes), decode(plain, codes), atol=1e-4)


def test_doubling_in_a_convolution_is_repeating_pixels_before_it(model):
    upsample = model.vqgan_params["decoder"]["up_1"]["upsample"]["conv"]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 5, upsample["kernel"].shape[2]), np.float32))
    repeated = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(vqgan._upsampled_conv(upsample, x), vqgan._conv(upsample, repeated), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 40}, "ch in steps of 32"),
        ({"resolution": 9}, "a resolution that halves 1 times"),
        ({"ch_mult": 2}, "ch_mult: expected a list of whole numbers"),
        ({"n_embed": 0}, "n_embed: expected a whole number above 0, got 0"),
        ({"double_z": True}, "double_z: expected False, got True"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ModelError, match=message):
        vqgan.VqganConfig.from_json(VQGAN_CONFIG | change)
