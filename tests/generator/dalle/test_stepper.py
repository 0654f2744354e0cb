"""Relations that hold for any weights."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from services.generator.dalle.batch import draw_tokens, read_tokens
from services.generator.dalle.conversion.verify import greedy
from services.generator.dalle.model import load_model
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.stepper import GenerateJob, GeneratorStepper, generate

JOB = GenerateJob("a red house", 7, temperature=1.0, top_k=0, top_p=1.0, guidance_scale=3.0)
OTHER = GenerateJob("two cats by the sea", 8, temperature=0.7, top_k=20, top_p=0.9, guidance_scale=1.0)


def step(stepper, slots, times):
    for _ in range(times):
        stepper.step(slots)


def tokens(stepper, slot):
    return stepper._sequences[slot].image_tokens


def draw_alone(model, job):
    stepper = GeneratorStepper(model, num_slots=1)
    step(stepper, [0], stepper.admit(0, job))
    return tokens(stepper, 0)


@pytest.fixture(scope="module")
def alone(model):
    return draw_alone(model, JOB)


def test_a_picture_takes_a_step_for_each_token(stepper):
    assert stepper.admit(0, JOB) == 16


def test_another_seed_gives_another_picture(model, alone):
    assert draw_alone(model, replace(JOB, seed=9)) != alone
    assert draw_alone(model, replace(JOB, seed=JOB.seed + 2**32)) != alone


def test_a_picture_is_the_same_in_a_batch_with_other_prompts_and_settings(stepper, alone):
    for slot in (0, 1, 3):
        stepper.admit(slot, OTHER)
    stepper.admit(2, JOB)
    step(stepper, [0, 1, 2, 3], 16)
    assert tokens(stepper, 2) == alone
    assert tokens(stepper, 0) == tokens(stepper, 3) != alone


def test_a_picture_is_the_same_in_a_full_batch_of_short_and_long_prompts(model):
    short, long = replace(JOB, prompt="ab"), replace(JOB, prompt="longer than that")
    stepper = GeneratorStepper(model, num_slots=2, short_text_length=6)
    for slot, job in enumerate((short, replace(short, seed=1))):
        stepper.admit(slot, job)
    step(stepper, [0, 1], 5)
    assert stepper._batch.prompt.text_mask.shape == (2, 6)
    stepper.release(1)
    stepper.admit(1, long)
    step(stepper, [0, 1], 11)
    assert stepper._batch.prompt.text_mask.shape == (2, 12)
    assert tokens(stepper, 0) == draw_alone(model, short)


@pytest.mark.parametrize("position", [1, 7, 8, 9, 15])
def test_a_picture_is_the_same_when_it_joins_late(stepper, alone, position):
    stepper.admit(0, OTHER)
    step(stepper, [0], position)
    stepper.admit(1, JOB)
    step(stepper, [0, 1], 16 - position)
    stepper.release(0)
    step(stepper, [1], position)
    assert tokens(stepper, 1) == alone


@pytest.mark.parametrize("position", [0, 1, 7, 8, 15])
def test_a_picture_is_the_same_after_others_were_released(stepper, alone, position):
    for slot, job in enumerate((OTHER, JOB, OTHER)):
        stepper.admit(slot, job)
    step(stepper, [0, 1, 2], position)
    stepper.release(0)
    stepper.release(2)
    step(stepper, [1], 16 - position)
    assert tokens(stepper, 1) == alone


def test_a_slot_can_be_used_again(stepper, alone):
    stepper.admit(0, OTHER)
    step(stepper, [0], 5)
    stepper.release(0)
    stepper.admit(0, JOB)
    step(stepper, [0], 16)
    assert tokens(stepper, 0) == alone


def test_a_slot_that_is_not_stepped_stays_where_it_is(stepper, alone):
    stepper.admit(0, JOB)
    stepper.admit(1, OTHER)
    step(stepper, [0, 1], 3)
    step(stepper, [1], 6)
    assert len(tokens(stepper, 0)) == 3
    step(stepper, [0], 13)
    assert tokens(stepper, 0) == alone


def test_a_failed_step_changes_nothing_and_the_next_one_goes_on(stepper, alone):
    stepper.admit(0, JOB)
    stepper.admit(1, OTHER)
    step(stepper, [0, 1], 6)
    stepper._batch.cache.k[0].delete()  # as if the device had lost it
    with pytest.raises(RuntimeError):
        stepper.step([0, 1])
    assert tokens(stepper, 0) == alone[:6]
    step(stepper, [0], 10)
    assert tokens(stepper, 0) == alone
    assert len(tokens(stepper, 1)) == 6


def test_a_picture_is_the_same_with_several_tokens_a_dispatch_while_others_join_and_leave(model, alone):
    stepper = GeneratorStepper(model, num_slots=4, tokens_per_dispatch=4)
    left = stepper.admit(1, JOB)
    left -= stepper.step_many([1], left)
    assert left == 16 - 4  # no more than a dispatch holds, whatever was asked for
    stepper.admit(0, OTHER)
    left -= stepper.step_many([0, 1], 3)
    left -= stepper.step_many([1], 1)  # the other one stays where it is
    assert len(tokens(stepper, 0)) == 3
    stepper.release(0)
    while left:
        left -= stepper.step_many([1], left)
    assert tokens(stepper, 1) == alone


def test_a_lost_cache_is_made_again_for_several_tokens_a_dispatch(model, alone):
    stepper = GeneratorStepper(model, num_slots=2, tokens_per_dispatch=4)
    left = stepper.admit(0, JOB)
    left -= stepper.step_many([0], 3)
    stepper._batch.cache.v[0].delete()
    with pytest.raises(RuntimeError):
        stepper.step_many([0], left)
    while left:
        left -= stepper.step_many([0], left)
    assert tokens(stepper, 0) == alone


@pytest.mark.parametrize("tokens_per_dispatch", [1, 4])
def test_joining_leaving_and_growing_copy_only_tokens_and_settings(model, monkeypatch, tokens_per_dispatch):
    stepper = GeneratorStepper(model, num_slots=4, tokens_per_dispatch=tokens_per_dispatch)
    stepper.warm_up()
    copied = []

    def recorded(copy):
        def record(tree):
            copied.append(sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)))
            return copy(tree)

        return record

    for name in ("device_put", "device_get"):
        monkeypatch.setattr(jax, name, recorded(getattr(jax, name)))
    with jax.transfer_guard("disallow"):  # all but what is asked for by those two names
        stepper.admit(0, JOB)
        step(stepper, [0], 6)
        for slot in (1, 2):
            stepper.admit(slot, OTHER)
        step(stepper, [0, 1, 2], 5)
        stepper.release(1)
        step(stepper, [0, 2], 3)
    cache_bytes = sum(layer.nbytes for layer in stepper._batch.cache.k)
    assert max(copied) < 256 < cache_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.matrix)])
def test_a_seed_is_one_picture_in_half_precision(model_folder, dtype):
    half = load_model(model_folder, dtype)
    alone = draw_alone(half, JOB)
    stepper = GeneratorStepper(half, num_slots=4)
    stepper.admit(3, OTHER)
    step(stepper, [3], 5)
    stepper.admit(0, JOB)
    step(stepper, [0, 3], 11)
    stepper.release(3)
    step(stepper, [0], 5)
    assert tokens(stepper, 0) == alone
    assert {array.dtype.name for array in jax.tree.leaves(stepper._batch.cache)} == {dtype}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_top_k_of_one_is_greedy(model, stepper, seed):
    stepper.admit(0, replace(JOB, seed=seed, top_k=1, guidance_scale=10.0))
    step(stepper, [0], 16)
    prompt, uncond_prompt = (
        stepper._encode(text) for text in (model.text_tokens(JOB.prompt), model.tokenizer.uncond_tokens)
    )
    greedy_tokens = greedy(model.dalle_params, model.dalle_config, prompt, uncond_prompt, guidance_scale=10.0)
    assert tokens(stepper, 0) == greedy_tokens[0, 1:].tolist()


def test_nothing_is_compiled_after_the_warm_up(stepper):
    stepper.warm_up()
    compiled = read_tokens._cache_size(), draw_tokens._cache_size()
    for slot, job in enumerate((JOB, OTHER, replace(JOB, temperature=0.1, top_k=3, top_p=0.5), OTHER)):
        stepper.admit(slot, job)
        step(stepper, list(range(slot + 1)), 3)
    for slot in range(4):
        step(stepper, list(range(slot, 4)), 2)
        stepper.release(slot)
    assert (read_tokens._cache_size(), draw_tokens._cache_size()) == compiled


def test_a_finished_picture_has_all_its_pixels(stepper):
    stepper.admit(0, JOB)
    step(stepper, [0], 16)
    (picture,) = stepper.decode([stepper.result(0)])
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == np.uint8


def test_pictures_are_decoded_in_the_order_asked_for(stepper):
    for slot, job in enumerate((JOB, OTHER, replace(JOB, seed=1))):
        stepper.admit(slot, job)
    step(stepper, [0, 1, 2], 16)
    views = [stepper.result(2), stepper.preview(0), stepper.result(1), stepper.preview(2), stepper.result(0)]
    for view, picture in zip(views, stepper.decode(views), strict=True):
        np.testing.assert_allclose(picture.astype(int), stepper.decode([view])[0], atol=1)


def test_a_preview_is_not_changed_by_later_steps(stepper):
    stepper.admit(0, JOB)
    step(stepper, [0], 5)
    view = stepper.preview(0)
    before = stepper.decode([view])[0]
    step(stepper, [0], 11)
    np.testing.assert_array_equal(stepper.decode([view])[0], before)


def test_a_preview_can_be_had_before_the_first_step(stepper):
    stepper.admit(0, JOB)
    assert stepper.decode([stepper.preview(0)])[0].shape == (8, 8, 3)


def test_generate_makes_a_picture_for_each_prompt_in_order(model):
    prompts, seeds = ["a red house", "a dog", "a red house"], [7, 8, 9]
    pictures = generate(model, prompts, seeds, num_slots=2)
    for prompt, seed, picture in zip(prompts, seeds, pictures, strict=True):
        np.testing.assert_allclose(picture.astype(int), generate(model, [prompt], [seed])[0], atol=1)


def test_generate_takes_the_models_own_settings_unless_set_otherwise(model):
    default, reported, other = (
        generate(model, ["a dog"], [1], sampling=sampling)[0].tolist()
        for sampling in (None, SamplingDefaults(guidance_scale=3.0), SamplingDefaults(top_k=1))
    )
    assert default == reported != other
