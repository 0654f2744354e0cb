"""A part of a picture is made anew and the rest stays, by networks that were trained for it and by any other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from services.refiner.conversion.random_weights import write_random_part
from services.refiner.inpainting import plan_inpainting
from services.refiner.model import load_model
from services.refiner.networks.diffusion import add_noise
from services.refiner.stepper import RefineJob, RefinerStepper, refine
from tests.refiner.conftest import SMALL
from tests.refiner.stepping import assert_same, finish

CPU = torch.device("cpu")
SIDE, DOWNSAMPLING = 32, 2


@pytest.fixture(scope="module")
def trained_model(tmp_path_factory):
    """A refiner of random weights whose UNet is shown what is kept."""
    folder = tmp_path_factory.mktemp("inpainting-refiner")
    for part, config in SMALL.items():
        write_random_part(part, replace(config, in_channels=8) if part == "unet" else config, folder / part)
    return load_model(folder, device="cpu")


@pytest.fixture(params=["blended", "trained"])
def either(request, model, trained_model):
    return model if request.param == "blended" else trained_model


@pytest.fixture(scope="module")
def mask():
    """The middle of the picture."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:24, 8:24] = True
    return mask


@pytest.fixture
def job(picture, mask):
    return RefineJob("a red house", picture, seed=7, init_seed=7, num_steps=4, skip_ratio=0.0, mask=mask)


@pytest.fixture
def far_outside(mask):
    """Kept pixels beyond the edge along which the new picture fades out."""
    return ~np.pad(mask, 2, mode="edge")[2:-2, 2:-2] & (plan(mask).weights == 0)


def plan(mask, downsampling=DOWNSAMPLING, side=SIDE):
    return plan_inpainting(np.zeros((side, side, 3), np.uint8), mask, downsampling, CPU)


def distance(picture, other, where):
    return np.abs(picture.astype(int) - other)[where].mean()


def test_outside_the_mask_the_picture_is_what_it_was(either, job, picture, far_outside):
    [made] = refine(either, [job])
    np.testing.assert_array_equal(made[far_outside], picture[far_outside])
    assert far_outside.mean() > 0.6


def test_inside_the_mask_the_picture_is_made_anew(either, job, picture, mask):
    [made] = refine(either, [job])
    assert distance(made, picture, mask) > 20


def test_what_is_made_anew_follows_the_seed(either, job, mask):
    first, again, other = (refine(either, [replace(job, seed=seed)])[0] for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert distance(first, other, mask) > 5


def test_what_is_made_anew_follows_the_prompt(either, job, mask):
    first, other = (refine(either, [replace(job, prompt=prompt)])[0] for prompt in ("a red house", "a boat"))
    assert distance(first, other, mask) > 1


def test_a_mask_in_a_batch_makes_the_picture_that_it_makes_alone(either, job):
    others = [replace(job, seed=1, mask=None), replace(job, seed=2, mask=~job.mask)]
    [alone] = refine(either, [job])
    assert_same(refine(either, [others[0], job, others[1]])[1], alone)


def test_a_picture_without_a_mask_is_none_the_worse_for_a_neighbour_with_one(either, job):
    plain = replace(job, mask=None)
    [alone] = refine(either, [plain])
    assert_same(refine(either, [job, plain])[1], alone)


@pytest.mark.parametrize("when", [0, 3, 12])
def test_a_neighbour_with_a_mask_may_be_cancelled_at_any_step(either, job, when):
    [alone] = refine(either, [job])
    stepper = RefinerStepper(either, num_slots=2)
    num_steps = stepper.admit(0, job)
    stepper.admit(1, replace(job, seed=1))
    for _ in range(when):
        stepper.step([0, 1])
    stepper.release(1)
    assert_same(finish(stepper, 0, num_steps - when), alone)


def test_a_slot_that_had_a_mask_before_leaves_nothing_behind(either, job):
    plain = replace(job, mask=None)
    [alone] = refine(either, [plain])
    stepper = RefinerStepper(either, num_slots=1)
    finish(stepper, 0, stepper.admit(0, job))
    stepper.release(0)
    np.testing.assert_array_equal(finish(stepper, 0, stepper.admit(0, plain)), alone)


def test_a_preview_shows_what_is_kept(either, job, picture, far_outside):
    stepper = RefinerStepper(either, num_slots=1)
    stepper.admit(0, job)
    stepper.step([0])
    [preview] = stepper.decode([stepper.preview(0)])
    np.testing.assert_array_equal(preview[far_outside], picture[far_outside])


def test_a_preview_that_is_smaller_shows_what_is_kept(mask, picture):
    pasted = replace(plan(mask), original=picture).paste(np.zeros((16, 16, 3), np.uint8))
    halved = np.asarray(Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX))
    np.testing.assert_array_equal(pasted[:3], halved[:3])
    assert not pasted[4:12, 4:12].any()


def test_of_a_picture_of_another_size_the_rest_is_what_it_becomes_at_the_model_s_size(either, job, picture):
    large = np.asarray(Image.fromarray(picture).resize((96, 48), Image.Resampling.BICUBIC))
    mask = np.zeros((48, 96), bool)
    mask[:24] = True
    [made] = refine(either, [replace(job, init_image=large, mask=mask)])
    np.testing.assert_array_equal(made[18:], either.resize(large)[18:])


def test_all_of_a_picture_may_be_repainted(either, job, picture):
    everything = np.ones((SIDE, SIDE), bool)
    [made] = refine(either, [replace(job, mask=everything)])
    assert distance(made, picture, everything) > 20


def rows_of(stepper):
    return stepper._tensors._rows


def test_before_every_call_the_kept_latents_are_the_picture_s_with_the_noise_of_that_moment(model, job):
    stepper = RefinerStepper(model, num_slots=1)
    num_steps = stepper.admit(0, job)
    noise = torch.from_numpy(stepper._noise(job.seed, 0))
    init = model.encode_image(job.init_image, stepper._noise(job.init_seed, 1))
    for _ in range(num_steps):
        slot = stepper._slots[0]
        kept = slot.inpainting.is_kept.expand_as(noise)
        alpha = slot.place.schedule.alpha_cumprod(slot.place.index_of_point)
        expected = add_noise(init, noise, alpha)
        torch.testing.assert_close(rows_of(stepper).point[0][kept], expected[kept], rtol=0, atol=1e-4)
        stepper.step([0])
    torch.testing.assert_close(rows_of(stepper).pred_xstart[0][kept], init[kept], rtol=0, atol=1e-4)


def test_a_trained_network_is_shown_what_the_reference_shows_it(trained_model, job):
    """GLID-3-xl: the scaled latent of the whole picture, zero where its mask, shrunk to the latent, is at most a half."""
    stepper = RefinerStepper(trained_model, num_slots=1)
    stepper.admit(0, job)
    latent = trained_model.encode_image(job.init_image, stepper._noise(job.init_seed, 1))
    size = trained_model.latent_shape[1:]
    keep = Image.fromarray(np.where(job.mask, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)
    expected = latent * torch.from_numpy(np.asarray(keep) / 255 > 0.5)
    shown = []
    hook = trained_model.unet.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[4]))
    stepper.step([0])
    hook.remove()
    # With the prompt and without.
    torch.testing.assert_close(shown[0], torch.stack([expected, expected]))


def test_a_trained_network_begins_with_noise_alone(trained_model, job):
    stepper = RefinerStepper(trained_model, num_slots=1)
    stepper.admit(0, job)
    torch.testing.assert_close(rows_of(stepper).x[0], torch.from_numpy(stepper._noise(job.seed, 0)))


def test_nothing_of_what_is_repainted_is_there_to_begin_with(model, job):
    stepper = RefinerStepper(model, num_slots=1)
    stepper.admit(0, job)
    x = rows_of(stepper).x[0]
    repainted = ~stepper._slots[0].inpainting.is_kept.expand_as(x)
    noise = torch.from_numpy(stepper._noise(job.seed, 0))
    torch.testing.assert_close(x[repainted], noise[repainted], rtol=3e-3, atol=0)


def test_skipped_steps_leave_something_of_what_is_repainted(either, job, picture, mask):
    near, far = (refine(either, [replace(job, num_steps=20, skip_ratio=ratio)])[0] for ratio in (0.8, 0.0))
    decoded = either.decode(either.encode_image(picture, np.zeros(either.latent_shape, np.float32))[None])[0]
    assert distance(near, decoded, mask) < distance(far, decoded, mask)


def test_one_pixel_of_a_large_mask_is_repainted():
    mask = np.zeros((2048, 2048), bool)
    mask[1000, 1000] = True
    planned = plan(mask)
    assert (planned.weights == 1).sum() == 1
    assert (~planned.is_kept).sum() == 1


@pytest.mark.parametrize(("downsampling", "edge"), [(2, 2), (4, 2), (8, 4)])
def test_the_new_picture_fades_out_within_so_many_pixels(downsampling, edge):
    mask = np.zeros((64, 64), bool)
    mask[:, :32] = True
    row = plan(mask, downsampling, 64).weights[20]
    assert (row[:32] == 1).all()
    assert (np.diff(row[31 : 33 + edge]) < 0).sum() >= edge
    assert (row[32 + edge :] == 0).all()
