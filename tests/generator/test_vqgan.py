import jax.numpy as jnp
import numpy as np
import pytest

from services.errors import ModelError
from services.generator import vqgan
from tests.generator.conftest import VQGAN_CONFIG


def test_a_code_is_its_own_nearest_code(model):
    image_tokens = jnp.arange(64).reshape(4, 16)
    codes = vqgan.look_up(model.vqgan_params, image_tokens)
    assert codes.shape == (4, 4, 4, 4)
    np.testing.assert_array_equal(vqgan.quantize(model.vqgan_params, codes), image_tokens)


def test_pixels_are_clipped_and_truncated():
    pixels = jnp.asarray([-0.5, 0.0, 0.5, 0.999, 1.0, 2.0]).reshape(1, 1, 2, 3)
    assert vqgan.to_uint8(pixels).ravel().tolist() == [0, 0, 127, 254, 255, 255]


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
