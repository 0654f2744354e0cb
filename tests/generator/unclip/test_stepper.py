"""Relations that hold for any weights."""

import numpy as np
import pytest
import torch

from services.errors import InvalidRequest
from services.generator.unclip.embeddings import mix, shift, slerp
from services.generator.unclip.stepper import (
    GenerateJob,
    ImagePrompt,
    Phase,
    TextDifference,
    UnclipStepper,
    generate,
)

SETTINGS = {"prior_num_steps": 3, "decoder_num_steps": 4, "super_res_num_steps": 2, "guidance_scale": 2.0}
NUM_STEPS = 9


def job(seed=0, **settings):
    return GenerateJob("a red house", seed, **{**SETTINGS, **settings})


def picture(seed, size=24):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def advance(stepper, slot, num_steps):
    for _ in range(num_steps):
        stepper.step([slot])


def run(stepper, slot, num_steps):
    advance(stepper, slot, num_steps)
    return stepper.result(slot)


def agree(a, b):
    return float((a - b).abs().max()) < 1e-3


@pytest.fixture(scope="module")
def alone(tiny):
    """The job's picture, made alone."""
    stepper = UnclipStepper(tiny, num_slots=1)
    assert stepper.admit(0, job(7)) == NUM_STEPS
    return run(stepper, 0, NUM_STEPS)


@pytest.mark.parametrize("head_start", range(NUM_STEPS))
def test_a_seed_is_one_picture_alone_and_beside_others_in_any_phase(tiny, alone, head_start):
    stepper = UnclipStepper(tiny, num_slots=2)
    stepper.admit(0, job(1))
    for _ in range(head_start):
        stepper.step([0])
    stepper.admit(1, job(7))
    for step in range(NUM_STEPS):
        stepper.step([0, 1] if step < NUM_STEPS - head_start else [1])
    assert agree(stepper.result(1), alone)


@pytest.mark.parametrize("cancelled_after", range(NUM_STEPS))
def test_cancelling_a_job_in_any_phase_leaves_the_others_alone(tiny, alone, cancelled_after):
    stepper = UnclipStepper(tiny, num_slots=2)
    stepper.admit(0, job(1))
    stepper.admit(1, job(7))
    for step in range(NUM_STEPS):
        if step == cancelled_after:
            stepper.release(0)
        stepper.step([0, 1] if step < cancelled_after else [1])
    assert agree(stepper.result(1), alone)


def test_another_seed_is_another_picture_and_seeds_have_64_bits(tiny, alone):
    for seed in (8, 7 + 2**32):
        stepper = UnclipStepper(tiny, num_slots=1)
        stepper.admit(0, job(seed))
        assert not agree(run(stepper, 0, NUM_STEPS), alone)


def test_every_step_advances_every_phase(tiny):
    stepper = UnclipStepper(tiny, num_slots=3)
    stepper.admit(0, job(1))
    advance(stepper, 0, 7)
    stepper.admit(1, job(2))
    advance(stepper, 1, 3)
    stepper.admit(2, job(3))
    before = {slot: (stepper._slots[slot].phase, stepper._slots[slot].step) for slot in range(3)}
    assert [phase for phase, _ in before.values()] == [Phase.SUPER_RES, Phase.DECODER, Phase.PRIOR]
    stepper.step([0, 1, 2])
    for slot, (phase, step) in before.items():
        assert (stepper._slots[slot].phase, stepper._slots[slot].step) == (phase, step + 1)


def test_a_preview_shows_pixels_once_the_decoder_draws(tiny):
    stepper = UnclipStepper(tiny, num_slots=1)
    stepper.admit(0, job())
    advance(stepper, 0, 2)
    assert stepper.preview(0) is None
    advance(stepper, 0, 3)
    [shown] = stepper.decode([stepper.preview(0)])
    assert shown.shape == (16, 16, 3)
    advance(stepper, 0, 3)
    [shown] = stepper.decode([stepper.preview(0)])
    assert shown.shape == (64, 64, 3)


def test_rows_without_the_prompt_are_asked_only_where_a_guidance_scale_needs_them(tiny, monkeypatch):
    seen = []
    decode = type(tiny).decode
    monkeypatch.setattr(
        type(tiny), "decode", lambda self, x, t, rows: seen.append(len(rows)) or decode(self, x, t, rows)
    )
    stepper = UnclipStepper(tiny, num_slots=3)
    for slot, scale in enumerate((1.0, 2.0, 1.0)):
        stepper.admit(slot, job(slot, guidance_scale=scale))
    for _ in range(4):
        stepper.step([0, 1, 2])
    assert seen == [4]


def test_super_resolution_can_be_left_out(tiny):
    [small] = generate(tiny, [job(super_res_num_steps=0)])
    assert small.shape == (16, 16, 3)


def test_image_prompts_take_the_priors_place(tiny):
    varied = job(image_prompts=(ImagePrompt(picture(0)),))
    assert [phase for phase, _ in varied.phases] == [Phase.DECODER, Phase.SUPER_RES]
    other = job(image_prompts=(ImagePrompt(picture(1)),))
    first, again, second = generate(tiny, [varied, varied, other])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_a_mixture_reaches_both_of_its_ends(tiny):
    def mixed(first, second):
        prompts = (ImagePrompt(picture(0), first), ImagePrompt(picture(1), second))
        return job(image_prompts=prompts)

    ends = [job(image_prompts=(ImagePrompt(picture(i)),)) for i in (0, 1)]
    a, b, near_a, near_b, between = generate(tiny, [*ends, mixed(1, 0), mixed(0, 1), mixed(1, 1)])
    assert np.array_equal(a, near_a)
    assert np.array_equal(b, near_b)
    assert not np.array_equal(between, a)
    assert not np.array_equal(between, b)


def test_a_text_difference_moves_the_picture(tiny):
    prompts = (ImagePrompt(picture(0)),)
    plain, moved, still = generate(
        tiny,
        [
            job(image_prompts=prompts),
            job(image_prompts=prompts, text_difference=TextDifference("a cat", "a lion", 0.5)),
            job(image_prompts=prompts, text_difference=TextDifference("a cat", "a lion", 0.0)),
        ],
    )
    assert not np.array_equal(plain, moved)
    assert np.abs(plain.astype(int) - still).max() <= 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prior_num_steps": 1}, "settings.prior_num_steps"),
        ({"decoder_num_steps": 0}, "settings.decoder_num_steps"),
        ({"super_res_num_steps": 1}, "settings.super_res_num_steps"),
        ({"image_prompts": (ImagePrompt(picture(0), 0.0),)}, "image_prompts"),
        ({"image_prompts": (ImagePrompt(picture(0)),) * 5}, "image_prompts"),
    ],
)
def test_what_no_picture_can_be_made_with_is_refused_by_name(tiny, settings, field):
    with pytest.raises(InvalidRequest) as refused:
        UnclipStepper(tiny, num_slots=1).admit(0, job(**settings))
    assert refused.value.field == field


def test_interpolation_keeps_to_the_sphere():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert torch.allclose(slerp(a, b, 0.5), torch.tensor([[2.0, 2.0]]) / 2**0.5)
    assert torch.allclose(mix([a, b], [1, 3]), slerp(a, b, 0.75))
    assert float(shift(a, b, 0.35).norm()) == pytest.approx(2)


def test_a_batch_that_fails_changes_no_slot(tiny, alone, monkeypatch):
    stepper = UnclipStepper(tiny, num_slots=1)
    stepper.admit(0, job(7))
    with monkeypatch.context() as broken:
        broken.setattr(
            type(tiny),
            "predict_embeddings",
            lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")),
        )
        with pytest.raises(Exception, match="no memory"):
            stepper.step([0])
    assert agree(run(stepper, 0, NUM_STEPS), alone)
