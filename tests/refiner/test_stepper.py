from dataclasses import replace

import numpy as np
import pytest

from services.refiner.model import load_model
from services.refiner.stepper import RefineJob, RefinerStepper, refine
from tests.refiner.stepping import assert_same, finish


@pytest.fixture(scope="module")
def job(picture):
    return RefineJob("a red house", picture, seed=7, init_seed=7, num_steps=8, skip_ratio=0.5)


@pytest.fixture
def stepper(model):
    return RefinerStepper(model, num_slots=3)


@pytest.fixture(scope="module")
def alone(model, job):
    return refine(model, [job])[0]


def test_a_seed_gives_the_same_picture_again(model, job, alone):
    np.testing.assert_array_equal(refine(model, [job])[0], alone)


def test_a_picture_in_a_batch_is_the_picture_alone(model, job, alone):
    others = [
        replace(job, seed=1, guidance_scale=2.0),
        replace(job, prompt="a cat", num_steps=11, skip_ratio=0.3),
    ]
    assert_same(refine(model, [others[0], job, others[1]])[1], alone)


def test_a_picture_that_joined_late_is_the_picture_alone(stepper, job, alone):
    stepper.admit(0, replace(job, seed=1, num_steps=30, skip_ratio=0.0))
    for _ in range(3):
        stepper.step([0])
    for _ in range(stepper.admit(1, job)):
        stepper.step([0, 1])
    assert_same(stepper.decode([stepper.result(1)])[0], alone)


def test_a_picture_whose_neighbour_left_is_the_picture_alone(stepper, job, alone):
    stepper.admit(0, replace(job, seed=1))
    num_steps = stepper.admit(1, job)
    for _ in range(5):
        stepper.step([0, 1])
    stepper.release(0)
    for _ in range(num_steps - 5):
        stepper.step([1])
    assert_same(stepper.decode([stepper.result(1)])[0], alone)


def test_a_slot_that_was_used_before_leaves_nothing_behind(stepper, job, alone):
    stepper.admit(0, replace(job, seed=1))
    stepper.step([0])
    stepper.release(0)
    np.testing.assert_array_equal(finish(stepper, 0, stepper.admit(0, job)), alone)


def test_variations_differ(model, job):
    first, second = refine(model, [job, replace(job, seed=8)])
    assert np.abs(first.astype(int) - second).mean() > 5


def test_seeds_that_differ_by_two_to_the_32_make_different_pictures(model, job, alone):
    assert np.abs(refine(model, [replace(job, seed=job.seed + 2**32)])[0].astype(int) - alone).mean() > 5


def test_the_largest_seed_is_a_seed(model, job):
    assert refine(model, [replace(job, seed=2**64 - 1)])[0].dtype == np.uint8


def test_the_init_seed_picks_the_latent(model, job, alone):
    assert np.abs(refine(model, [replace(job, init_seed=8)])[0].astype(int) - alone).mean() > 1


def test_the_init_latent_is_not_drawn_with_the_picture_s_noise(model):
    stepper = RefinerStepper(model, num_slots=1)
    assert not np.allclose(stepper._noise(7, 0), stepper._noise(7, 1))


def test_skipping_nearly_all_stays_near_the_reconstruction(model, job):
    stepper = RefinerStepper(model, num_slots=1)
    stepper.admit(0, replace(job, num_steps=1000, skip_ratio=0.996))
    [start] = stepper.decode(
        [stepper.result(0)]
    )  # before the first step: the latent with the noise of timestep 3

    def distance(other):
        return np.abs(other.astype(int) - start).mean()

    near = finish(stepper, 0, 4 + 9)
    [far] = refine(model, [replace(job, skip_ratio=0.0)])
    assert distance(near) < distance(far) / 5


def test_the_prompt_changes_the_picture(model, job, alone):
    assert np.abs(refine(model, [replace(job, prompt="a blue boat")])[0].astype(int) - alone).mean() > 1


def test_the_negative_prompt_changes_the_picture(model, job, alone):
    assert np.abs(refine(model, [replace(job, negative_prompt="rain")])[0].astype(int) - alone).mean() > 1


def test_a_guidance_scale_of_one_ignores_the_negative_prompt(model, job):
    first, second = refine(
        model, [replace(job, guidance_scale=1.0, negative_prompt=text) for text in ("", "rain")]
    )
    assert_same(first, second)


def test_a_slot_without_guidance_is_asked_about_only_once(model, stepper, job):
    stepper.admit(0, replace(job, guidance_scale=1.0))
    stepper.admit(1, job)
    batches = []
    hook = model.unet.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    stepper.step([0, 1])
    hook.remove()
    assert batches == [3]


def test_a_picture_is_made_without_an_init_image(model, job):
    [picture] = refine(model, [replace(job, init_image=None)])
    assert picture.shape == (32, 32, 3)


def test_the_skip_ratio_is_ignored_without_an_init_image(job):
    assert replace(job, init_image=None, num_steps=20, skip_ratio=0.9).num_calls == 29


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 90, 3), (64, 64, 3)])
def test_an_init_image_of_any_size_is_resized(model, job, shape):
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert refine(model, [replace(job, init_image=image)])[0].shape == (32, 32, 3)


def test_the_number_of_steps_counts_every_call_of_the_network(stepper, job):
    assert stepper.admit(0, replace(job, num_steps=20, skip_ratio=0.6)) == 20 - 12 + 9


@pytest.mark.parametrize(
    ("num_steps", "skip_ratio", "num_skipped"), [(100, 0.29, 29), (100, 0.6, 60), (27, 0.5, 14)]
)
def test_the_skipped_steps_are_rounded_and_not_cut(job, num_steps, skip_ratio, num_skipped):
    assert replace(job, num_steps=num_steps, skip_ratio=skip_ratio).num_skipped == num_skipped


def test_a_step_that_fails_changes_no_slot(model, job, alone, monkeypatch):
    stepper = RefinerStepper(model, num_slots=2)
    num_steps = stepper.admit(0, job)
    stepper.step([0])
    stepper.admit(1, job)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(model.unet), "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory"))
        )
        with pytest.raises(RuntimeError, match="no memory"):
            stepper.step([0, 1])
    np.testing.assert_array_equal(finish(stepper, 0, num_steps - 1), alone)


def test_a_preview_changes_nothing(stepper, job, alone):
    num_steps = stepper.admit(0, job)
    for _ in range(num_steps):
        stepper.step([0])
        stepper.decode([stepper.preview(0)])
    np.testing.assert_array_equal(stepper.decode([stepper.result(0)])[0], alone)


def test_pictures_are_decoded_in_the_order_asked_for(stepper, job):
    stepper.admit(0, job)
    stepper.admit(1, replace(job, seed=8))
    stepper.step([0, 1])
    views = [stepper.preview(1), stepper.result(0), stepper.preview(0), stepper.result(1)]
    for view, picture in zip(views, stepper.decode(views), strict=True):
        assert_same(picture, stepper.decode([view])[0])


def test_a_free_slot_may_be_released_and_taken(stepper, job, alone):
    stepper.release(0)
    np.testing.assert_array_equal(finish(stepper, 0, stepper.admit(0, job)), alone)


def test_warming_up_leaves_all_slots_free(stepper, job, alone):
    stepper.warm_up()
    np.testing.assert_array_equal(finish(stepper, 2, stepper.admit(2, job)), alone)


@pytest.mark.parametrize(("dtype", "levels"), [("bfloat16", 2), ("float16", 1)])
def test_a_picture_in_half_precision_is_the_same_alone_and_in_a_batch(
    model_folder, job, alone, dtype, levels
):
    half = load_model(model_folder, device="cpu", dtype=dtype)
    single, batched = refine(half, [job])[0], refine(half, [replace(job, seed=1), job])[1]
    assert np.abs(single.astype(int) - batched).max() <= levels
    # And near the one in float32, though not the same.
    assert 0 < np.abs(single.astype(int) - alone).mean() < 4


def test_a_step_that_is_padded_and_guides_all_slots_gives_the_same_picture(model, job, alone):
    """As a captured graph runs it: with a row of the spare slot, and those without guidance guided, too."""
    stepper = RefinerStepper(model, num_slots=5, mode="padded")
    unguided = replace(job, guidance_scale=1.0)
    num_steps = [stepper.admit(slot, one) for slot, one in enumerate((job, unguided, job))]
    for _ in range(num_steps[0]):
        stepper.step([0, 1, 2])
    guided, plain, again = stepper.decode([stepper.result(slot) for slot in range(3)])
    assert_same(guided, alone)
    assert_same(again, alone)
    assert_same(plain, refine(model, [unguided])[0])
