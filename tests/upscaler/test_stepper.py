"""Pictures through the stepper: tile by tile, alone and together."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.errors import ImageTooLarge, InvalidRequest
from services.images.codec import DecodedImage
from services.upscaler.model import place
from services.upscaler.networks.swinir import SwinIR
from services.upscaler.stepper import (
    MAX_TILES_TOGETHER,
    UpscaleJob,
    UpscalerStepper,
    tiles_that_fit,
    upscale,
)
from tests.upscaler.conftest import random_picture, random_swinir

# Along an axis, the pixels that can reach a pixel through a group of two blocks with windows of 4: a convolution before
# and three behind (1 each), and two windows (3 each) make 10. Neighbours drop half of the overlap each.
REACH = 10
# The same sum in another order: a value half-way between two levels may fall on either side.
ONE_LEVEL = 1


@pytest.fixture(scope="module")
def network() -> SwinIR:
    return place(random_swinir(), torch.device("cpu"))


def finish(stepper: UpscalerStepper, slot: int, num_steps: int) -> np.ndarray:
    for _ in range(num_steps):
        stepper.step([slot])
    return stepper.result(slot)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"upsampler": "nearest+conv", "resi_connection": "3conv", "upscale": 2},
        {"upsampler": "pixelshuffle", "upscale": 3},
    ],
)
def test_tiles_give_the_whole_picture_when_their_context_covers_the_reach(settings: dict[str, Any]) -> None:
    # nearest+conv has up to three convolutions behind the body, but at twice the size: REACH + 2 covers them.
    network = place(random_swinir(**settings), torch.device("cpu"))
    image = random_picture(61, 83)
    whole = upscale(network, image, tile_size=0)
    tiled = upscale(network, image, tile_size=40, tile_overlap=2 * (REACH + 2))
    assert difference(tiled, whole) <= ONE_LEVEL


def test_tiles_without_context_show_so_the_comparison_can_fail(network: SwinIR) -> None:
    image = random_picture(61, 83)
    tiled = upscale(network, image, tile_size=40, tile_overlap=0)
    assert difference(tiled, upscale(network, image, tile_size=0)) > 10 * ONE_LEVEL


def test_more_overlap_brings_a_deep_network_nearer_to_the_whole_picture() -> None:
    network = place(random_swinir(depths=(4, 4), num_heads=(2, 2)), torch.device("cpu"))
    image = random_picture(60, 60)
    whole = upscale(network, image, tile_size=0).astype(float)
    errors = [
        np.abs(upscale(network, image, tile_size=40, tile_overlap=overlap) - whole).mean()
        for overlap in (0, 16, 32)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 2), (7, 9), (8, 8), (31, 33)])
def test_a_picture_of_any_size_grows_four_times(network: SwinIR, height: int, width: int) -> None:
    image = random_picture(height, width)
    enlarged = upscale(network, image, tile_size=16, tile_overlap=8)
    assert enlarged.shape == (4 * height, 4 * width, 3)
    assert enlarged.dtype == np.uint8


def test_a_picture_is_the_same_alone_in_a_batch_and_joined_late(network: SwinIR) -> None:
    images = [random_picture(30, 40, seed) for seed in range(3)]
    alone = [upscale(network, image, tile_size=24, tile_overlap=8) for image in images]

    stepper = UpscalerStepper(network, num_slots=3)
    left = {slot: stepper.admit(slot, UpscaleJob(DecodedImage(images[slot]), 24, 8)) for slot in (0, 1)}
    joined, together = False, {}
    while left:
        stepper.step(sorted(left))
        left = {slot: num_steps - 1 for slot, num_steps in left.items()}
        if not joined:
            left[2], joined = stepper.admit(2, UpscaleJob(DecodedImage(images[2]), 24, 8)), True
        for slot in [slot for slot, num_steps in left.items() if num_steps == 0]:
            together[slot] = stepper.result(slot).copy()
            stepper.release(slot)
            del left[slot]

    for slot in range(3):
        assert difference(together[slot], alone[slot]) <= ONE_LEVEL


def test_pictures_of_different_sizes_and_tilings_share_a_step(network: SwinIR) -> None:
    jobs = [
        UpscaleJob(DecodedImage(random_picture(20, 20)), 16, 0),
        UpscaleJob(DecodedImage(random_picture(9, 30)), 24, 8),
    ]
    stepper = UpscalerStepper(network, num_slots=2)
    num_steps = [stepper.admit(slot, job) for slot, job in enumerate(jobs)]
    for step in range(max(num_steps)):
        stepper.step([slot for slot in (0, 1) if step < num_steps[slot]])
    for job, together in zip(jobs, map(stepper.result, (0, 1)), strict=True):
        assert difference(together, upscale(network, job.image.rgb, tile_size=job.tile_size, tile_overlap=job.tile_overlap)) <= ONE_LEVEL  # fmt: skip


def test_there_are_as_many_steps_as_tiles(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1)
    assert stepper.admit(0, UpscaleJob(DecodedImage(random_picture(30, 46)), 16, 0)) == 2 * 3


def test_a_preview_is_the_bicubic_picture_with_the_finished_tiles_in_it(network: SwinIR) -> None:
    image = random_picture(30, 30)
    stepper = UpscalerStepper(network, num_slots=1)
    num_steps = stepper.admit(0, UpscaleJob(DecodedImage(image), 16, 0))
    before = stepper.preview(0)
    stepper.step([0])
    after_one = stepper.preview(0)
    result = finish(stepper, 0, num_steps - 1)

    assert np.abs(before[1::4, 1::4].astype(float) - image).mean() < 30
    assert (after_one[:64, :64] == result[:64, :64]).all()
    assert (after_one[64:, 64:] == before[64:, 64:]).all()


def test_a_preview_stays_as_it_was_when_the_picture_goes_on(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1)
    stepper.admit(0, UpscaleJob(DecodedImage(random_picture(30, 30)), 16, 0))
    preview = stepper.preview(0)
    kept = preview.copy()
    stepper.step([0])
    assert (preview == kept).all()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else [result]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def test_the_largest_tensor_depends_on_the_tile_and_not_on_the_picture(network: SwinIR) -> None:
    largest = []
    for side in (31, 159):
        with LargestTensor() as seen:
            upscale(network, random_picture(side, side), tile_size=16, tile_overlap=0)
        largest.append(seen.numel)
    assert largest[0] == largest[1]


def test_a_released_slot_holds_nothing_and_takes_the_next_picture(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1)
    stepper.admit(0, UpscaleJob(DecodedImage(random_picture(30, 30)), 16, 0))
    stepper.step([0])
    stepper.release(0)
    stepper.release(0)
    image = random_picture(20, 20, seed=1)
    num_steps = stepper.admit(0, UpscaleJob(DecodedImage(image), 16, 0))
    assert (finish(stepper, 0, num_steps) == upscale(network, image, tile_size=16, tile_overlap=0)).all()


def test_warming_up_leaves_every_slot_free(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1)
    stepper.warm_up()
    assert stepper.admit(0, UpscaleJob(DecodedImage(random_picture(7, 7)))) == 1


def test_a_picture_beyond_the_limit_is_refused(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1, max_pixels=100)
    with pytest.raises(ImageTooLarge):
        stepper.admit(0, UpscaleJob(DecodedImage(random_picture(10, 11))))


def test_a_bad_tiling_fails_the_job_before_it_takes_a_slot(network: SwinIR) -> None:
    stepper = UpscalerStepper(network, num_slots=1)
    with pytest.raises(InvalidRequest, match="tile_overlap"):
        stepper.admit(0, UpscaleJob(DecodedImage(random_picture(10, 10)), 16, 16))


def test_several_tiles_a_step_give_the_picture_of_one_tile_a_step(network: SwinIR) -> None:
    image = random_picture(50, 70)
    stepper = UpscalerStepper(network, num_slots=2, tiles_together=4)
    job = UpscaleJob(DecodedImage(image), 16, 8)
    left = stepper.admit(0, job)
    stepper.admit(1, job)
    made = []
    while left:
        made.append(stepper.step_many([0, 1] if len(made) < 2 else [0], left))
        left -= made[-1]
    # Four tiles together: two of each of two slots, then four of one.
    assert set(made[:2]) == {2}
    assert max(made[2:]) == 4
    assert difference(stepper.result(0), upscale(network, image, tile_size=16, tile_overlap=8)) <= ONE_LEVEL


def test_tiles_together_follow_from_the_free_memory(network: SwinIR) -> None:
    plenty, some, none = (tiles_that_fit(network, free) for free in (2**40, 2**32, 0))
    assert (plenty, none) == (MAX_TILES_TOGETHER, 1)
    assert 1 < some < plenty
