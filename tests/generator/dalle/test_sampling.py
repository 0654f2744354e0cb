import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from services.errors import ModelError
from services.generator.dalle.networks.sampling import (
    SamplingDefaults,
    draw,
    filter_logits,
    guide,
    seed_halves,
)
from tests.generator.conftest import GOLDEN

SAMPLING = GOLDEN / "sampling"


@pytest.fixture(scope="module")
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 96)), jnp.float32)


@pytest.fixture(scope="module")
def jitted():
    return jax.jit(filter_logits)


def rows(*values, dtype=jnp.float32):
    return jnp.asarray(values, dtype)


def test_the_distributions_are_the_references(jitted):
    cases = json.loads((SAMPLING / "sampling.json").read_text())["cases"]
    with np.load(SAMPLING / "sampling.npz") as vectors:
        for case in cases:
            # In the reference, None is 50 for top_k.
            top_k = 50 if case["top_k"] is None else case["top_k"]
            top_p = 1.0 if case["top_p"] is None else case["top_p"]
            filtered = jitted(
                jnp.asarray(vectors["logits"]),
                rows(*[case["temperature"] or 1.0] * 4),
                rows(*[top_k] * 4, dtype=jnp.int32),
                rows(*[top_p] * 4),
            )
            probabilities = jax.nn.softmax(filtered, axis=-1)
            np.testing.assert_allclose(
                probabilities, vectors[f"probs_{case['i']}"], atol=1e-6, err_msg=str(case)
            )
            assert [int(kept) for kept in (filtered > -jnp.inf).sum(-1)] == case["kept"], case


def test_rows_with_different_settings_do_not_touch_each_other(logits, jitted):
    settings = [(1.0, 0, 1.0), (0.5, 5, 1.0), (2.0, 0, 0.5), (1.0, 7, 0.9)]
    together = jitted(
        logits,
        rows(*[s[0] for s in settings]),
        rows(*[s[1] for s in settings], dtype=jnp.int32),
        rows(*[s[2] for s in settings]),
    )
    for i, (temperature, top_k, top_p) in enumerate(settings):
        alone = jitted(logits[i : i + 1], rows(temperature), rows(top_k, dtype=jnp.int32), rows(top_p))
        np.testing.assert_array_equal(together[i], alone[0])


def test_top_k_of_one_leaves_the_likeliest_token(logits, jitted):
    filtered = jitted(logits, rows(1, 1, 1, 1), rows(1, 1, 1, 1, dtype=jnp.int32), rows(1, 1, 1, 1))
    np.testing.assert_array_equal(filtered.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal((filtered > -jnp.inf).sum(-1), 1)


def test_no_filter_leaves_all_tokens(logits, jitted):
    filtered = jitted(logits, rows(1, 1, 1, 1), rows(0, 0, 96, 1000, dtype=jnp.int32), rows(1, 1, 1, 1))
    np.testing.assert_array_equal(filtered, logits)


def test_a_guidance_scale_of_one_is_no_guidance_and_zero_is_no_prompt(logits):
    cond, uncond = logits[:2], logits[2:]
    guided = guide(cond, uncond, rows(1.0, 0.0))
    np.testing.assert_allclose(guided[0], cond[0], atol=1e-6)
    np.testing.assert_array_equal(guided[1], uncond[1])


def test_draws_follow_the_probabilities():
    logits = jnp.log(jnp.tile(rows(0.5, 0.3, 0.2), (4000, 1)))
    seeds = jnp.stack([jnp.zeros(4000, jnp.uint32), jnp.arange(4000, dtype=jnp.uint32)], axis=1)
    drawn = Counter(np.asarray(jax.jit(draw)(logits, seeds, jnp.zeros(4000, jnp.int32))).tolist())
    np.testing.assert_allclose([drawn[token] / 4000 for token in range(3)], [0.5, 0.3, 0.2], atol=0.03)


def test_both_halves_of_a_seed_and_the_position_change_the_draw():
    seeds = [seed_halves(seed) for seed in (1, 1 << 32, 2**64 - 1, 1)]
    drawn = jax.jit(draw)(jnp.zeros((4, 10_000)), jnp.asarray(seeds, jnp.uint32), jnp.asarray([0, 0, 0, 1]))
    assert len(set(drawn.tolist())) == 4


def test_a_draw_does_not_depend_on_the_other_rows(logits):
    seeds = jnp.asarray([seed_halves(seed) for seed in range(4)], jnp.uint32)
    positions = jnp.arange(4)
    together = draw(logits, seeds, positions)
    alone = [draw(logits[i : i + 1], seeds[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == [int(token) for token in alone]


def test_a_model_may_bring_its_own_defaults():
    assert SamplingDefaults.from_json({}) == SamplingDefaults(1.0, 0, 1.0, 10.0)
    raw = {"sampling": {"temperature": 0.5, "guidance_scale": 2}}
    assert SamplingDefaults.from_json(raw) == SamplingDefaults(0.5, 0, 1.0, 2.0)


@pytest.mark.parametrize("sampling", [[], {"top_k": 0.5}, {"temperature": "hot"}, {"typo": 1}, {"top_p": -1}])
def test_defaults_that_make_no_sense_are_refused(sampling):
    with pytest.raises(ModelError, match=r"config\.json: sampling"):
        SamplingDefaults.from_json({"sampling": sampling})
