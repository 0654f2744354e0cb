import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from services.refiner.networks.diffusion import (
    MIN_STEPS,
    SamplerPlace,
    SamplerRows,
    advance_rows,
    guide,
    make_schedule,
    start_sampler,
    train_alphas_cumprod,
)

PLMS_CASES = {
    "s20_skip0": (20, 0, False),
    "s20_skip0_init": (20, 0, True),
    "s20_skip12": (20, 12, True),
    "s20_skip16": (20, 16, True),
    "s100_skip60": (100, 60, True),
}


def closed_form_eps(x, timestep):
    """Stands for a network: the one that the reference's sampler was recorded with."""
    channel = torch.arange(len(x))[:, None, None]
    return 0.6 * torch.tanh(0.7 * x) + 0.05 * (channel + 1) * math.sin(timestep / 150) + 0.1 * x.flip(-1)


def assert_agrees(actual, expected):
    """Within what rounding adds up to over a run, relative to the largest value."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


def run(schedule, noise, init, num_skipped):
    """Every sampler on the way, the last one finished."""
    samplers = [start_sampler(schedule, noise, init, num_skipped)]
    while not samplers[-1].is_finished:
        sampler = samplers[-1]
        samplers.append(sampler.advance(closed_form_eps(sampler.point, sampler.timestep)))
    return samplers


@pytest.fixture(scope="module")
def plms(golden):
    return golden.arrays("plms_toy")


@pytest.fixture(params=PLMS_CASES, scope="module")
def recorded(request, plms):
    num_steps, num_skipped, has_init = PLMS_CASES[request.param]
    runs = [
        run(make_schedule(num_steps), noise, plms["init"][0] if has_init else None, num_skipped)
        for noise in plms["noise"]
    ]
    prefix = f"{request.param}_"
    arrays = {name.removeprefix(prefix): a for name, a in plms.items() if name.startswith(prefix)}
    return runs, arrays


def ends_of_steps(samplers):
    return [after for before, after in pairwise(samplers) if after.index < before.index]


def test_the_network_is_asked_at_the_reference_s_timesteps(recorded):
    runs, arrays = recorded
    asked = [sampler.timestep for sampler in runs[0][:-1]]
    assert asked == pytest.approx(arrays["model_timesteps"].tolist(), abs=1e-9)


def test_each_predicted_picture_agrees_with_the_reference(recorded):
    runs, arrays = recorded
    predicted = torch.stack([torch.stack([s.pred_xstart for s in ends_of_steps(run)]) for run in runs], dim=1)
    assert_agrees(predicted, arrays["pred_xstart"])


@pytest.mark.parametrize("recorded", [case for case in PLMS_CASES if case != "s100_skip60"], indirect=True)
def test_each_sample_but_the_last_agrees_with_the_reference(recorded):
    runs, arrays = recorded
    samples = torch.stack([torch.stack([s.x for s in ends_of_steps(run)]) for run in runs], dim=1)
    assert_agrees(samples[:-1], arrays["sample"][:-1])


def test_samplers_that_advance_together_are_those_that_advance_alone_to_the_last_bit(plms):
    samplers = [
        start_sampler(make_schedule(num_steps), noise, init, num_skipped)
        for num_steps, num_skipped, noise, init in (
            (20, 0, plms["noise"][0], None),
            (4, 0, plms["noise"][0], None),
            (50, 44, plms["noise"][0], plms["init"][0]),
        )
    ]
    # They begin one after another, so that different kinds of calls meet in one step.
    places = [SamplerPlace(sampler.schedule, sampler.index) for sampler in samplers]
    x = torch.stack([sampler.x for sampler in samplers])
    rows = SamplerRows(
        x, x.clone(), x.clone(), torch.zeros_like(x), torch.zeros_like(x)[:, None].repeat(1, 3, 1, 1, 1)
    )
    for step in range(40):
        moving = [i for i, place in enumerate(places) if place.index >= 0 and step >= 2 * i]
        if not moving:
            break
        eps = torch.stack([closed_form_eps(samplers[i].point, samplers[i].timestep) for i in moving])
        assert [places[i].weights.timestep for i in moving] == [samplers[i].timestep for i in moving]
        together = advance_rows(
            SamplerRows(*(tensor[moving] for tensor in rows)),
            eps,
            torch.tensor([places[i].weights for i in moving], dtype=torch.float32),
        )
        for tensor, new in zip(rows, together, strict=True):
            tensor[moving] = new
        for row, i in enumerate(moving):
            samplers[i], places[i] = samplers[i].advance(eps[row]), places[i].advance()
            for name in ("x", "point", "pred_xstart"):
                assert torch.equal(getattr(together, name)[row], getattr(samplers[i], name)), (step, i, name)
    assert all(sampler.is_finished for sampler in samplers)


def test_what_gives_nan_in_the_reference_is_refused(plms):
    assert plms["s20_skip17_NAN_pred_xstart"].isnan().any()
    with pytest.raises(ValueError, match=f"at least {MIN_STEPS}"):
        start_sampler(make_schedule(20), plms["noise"][0], plms["init"][0], num_skipped=17)


@pytest.mark.parametrize("num_steps", [10, 20, 27, 35, 50, 100, 250])
def test_respaced_timesteps_agree_with_the_reference(golden, num_steps):
    arrays = golden.arrays("schedule")
    schedule = make_schedule(num_steps)
    assert list(schedule.timesteps) == arrays[f"timestep_map_{num_steps}"].tolist()
    np.testing.assert_allclose(schedule.alphas_cumprod, arrays[f"alphas_cumprod_{num_steps}"], rtol=1e-12)


def test_the_training_schedule_agrees_with_the_reference(golden):
    np.testing.assert_allclose(
        train_alphas_cumprod(), golden.arrays("schedule")["alphas_cumprod_1000"], rtol=1e-12
    )


@pytest.mark.parametrize("num_steps", [2, 4, 999, 1000])
def test_a_schedule_spans_the_training_timesteps(num_steps):
    timesteps = make_schedule(num_steps).timesteps
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (num_steps, 0, 999)


@pytest.mark.parametrize("num_steps", [0, 1, 1001])
def test_an_impossible_number_of_steps_is_refused(num_steps):
    with pytest.raises(ValueError, match="expected 2..1000"):
        make_schedule(num_steps)


def test_guidance_agrees_with_the_reference(golden):
    arrays = golden.arrays("guidance")
    cond, uncond = arrays["raw_model_out"].chunk(2)
    guided = guide(cond, uncond, torch.full((2,), float(arrays["scale"])), guided_channels=3)
    torch.testing.assert_close(guided, arrays["guided_out"][:2], rtol=0, atol=1e-6)


def test_a_guidance_scale_of_one_follows_the_prompt_alone():
    cond, uncond = torch.randn(2, 3, 4, 2, 2)
    torch.testing.assert_close(guide(cond, uncond, torch.ones(3), guided_channels=4), cond)


def test_each_latent_has_its_own_guidance_scale():
    cond, uncond = torch.randn(2, 2, 4, 2, 2)
    guided = guide(cond, uncond, torch.tensor([0.0, 1.0]), guided_channels=4)
    torch.testing.assert_close(guided, torch.stack([uncond[0], cond[1]]))
