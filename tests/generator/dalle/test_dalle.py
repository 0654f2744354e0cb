import jax
import jax.numpy as jnp
import numpy as np
import pytest

from services.errors import ModelError
from services.generator.dalle.networks import dalle, dalle_parameters
from services.generator.dalle.networks.dalle_parameters import DalleConfig
from tests.generator.conftest import DALLE_CONFIG


@pytest.fixture(scope="module")
def prompts(model):
    """Two prompts in one array, of different lengths."""
    tokens = [model.text_tokens(text) for text in ("a cat", "a very long dog")]
    ids, mask = (jnp.asarray(np.stack(parts)) for parts in zip(*tokens, strict=True))
    encode, project_cross_attention = (
        jax.jit(part, static_argnums=1) for part in (dalle.encode, dalle.project_cross_attention)
    )
    hidden = encode(model.dalle_params, model.dalle_config, ids, mask)
    return project_cross_attention(model.dalle_params, model.dalle_config, hidden, mask)


def test_decoding_with_a_cache_equals_decoding_without(model, prompts):
    image_tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 16)))
    uncached = jax.jit(dalle.decode, static_argnums=1)(
        model.dalle_params, model.dalle_config, image_tokens, prompts
    )
    step = jax.jit(dalle.decode_step, static_argnums=1)
    cache = dalle.empty_cache(model.dalle_config, 2, 16)
    for position in range(16):
        logits, cache = step(
            model.dalle_params,
            model.dalle_config,
            cache,
            image_tokens[:, position],
            jnp.full(2, position),
            [prompts],
        )
        np.testing.assert_allclose(logits, uncached[:, position], atol=1e-5)


def test_what_stands_behind_the_text_mask_is_never_read(model):
    config, params = model.dalle_config, model.dalle_params

    @jax.jit
    def read(params, ids, mask, image_tokens):
        hidden = dalle.encode(params, config, ids, mask)
        return dalle.decode(
            params, config, image_tokens, dalle.project_cross_attention(params, config, hidden, mask)
        )

    ids, mask = (jnp.asarray(part[None]) for part in model.text_tokens("a cat"))
    start = jnp.full((1, 1), config.decoder_start_token_id)
    logits = []
    for hidden_by_mask in (1, 200):
        changed = jnp.where(mask, ids, hidden_by_mask)
        logits.append(read(params, changed, mask, start))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-6)


def test_the_codes_are_what_comes_before_the_start_token():
    # mega has 16384 codes, 16415 image tokens and a start token in between.
    config = DalleConfig.from_json(DALLE_CONFIG)
    assert (config.num_codes, config.image_vocab_size) == (64, 70)
    assert dalle_parameters.parameter_shapes(config)["lm_head.kernel"] == (32, 71)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": "32"}, "d_model: expected a whole number, got '32'"),
        ({"use_glu": 1}, "use_glu: expected true or false"),
        ({"image_length": None}, "image_length"),
        ({"decoder_attention_heads": 5}, "cannot be split into 5 heads"),
        ({"ln_positions": "swinv2"}, "ln_positions: expected 'normformer', got 'swinv2'"),
        ({"decoder_start_token_id": 71}, "decoder_start_token_id"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ModelError, match=message):
        DalleConfig.from_json(DALLE_CONFIG | change)
