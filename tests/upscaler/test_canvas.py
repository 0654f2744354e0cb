"""A large picture is gathered row by row in a file, and is the same as one that is gathered in memory."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from services.images.codec import DecodedImage, read_png_size
from services.images.png_stream import PngWriter
from services.upscaler import canvas
from services.upscaler.canvas import FileCanvas, MemoryCanvas, make_canvas
from services.upscaler.model import place
from services.upscaler.stepper import UpscaleJob, UpscalerStepper
from tests.upscaler.conftest import random_picture, random_swinir


def decoded(height, width, *, alpha=False, is_gray=False):
    rgb = random_picture(height, width)
    if is_gray:
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    levels = np.random.default_rng(2).integers(0, 256, (height, width), dtype=np.uint8)
    return DecodedImage(rgb, levels if alpha else None, is_gray)


def pixels_of(view):
    if not callable(view):
        return view
    encoded = view()
    data = b"".join(encoded.parts(1000))
    assert read_png_size(data) == (encoded.width, encoded.height)
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def stepper():
    return UpscalerStepper(place(random_swinir(), torch.device("cpu")), num_slots=1)


def enlarge(stepper, image):
    for _ in range(stepper.admit(0, UpscaleJob(image, 24, 8))):
        stepper.step([0])
    return pixels_of(stepper.result(0))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("is_gray", [False, True])
def test_in_a_file_it_is_the_same_picture(stepper, monkeypatch, alpha, is_gray):
    image = decoded(50, 37, alpha=alpha, is_gray=is_gray)
    in_memory = enlarge(stepper, image)
    monkeypatch.setattr(canvas, "MAX_PIXELS_IN_MEMORY", 0)
    assert isinstance(make_canvas(image, 4), FileCanvas)
    in_file = enlarge(stepper, image)
    assert in_file.shape == in_memory.shape
    assert (in_file == in_memory).all()


def test_gray_stays_gray_and_alpha_is_enlarged_by_as_much(stepper):
    assert enlarge(stepper, decoded(20, 30, is_gray=True)).shape == (80, 120)
    both = enlarge(stepper, decoded(20, 30, alpha=True))
    assert both.shape == (80, 120, 4)
    alpha = Image.fromarray(decoded(20, 30, alpha=True).alpha).resize((120, 80), Image.Resampling.BICUBIC)
    assert (both[..., 3] == np.asarray(alpha)).all()


def test_a_large_picture_is_shown_small_while_it_is_made(stepper, monkeypatch):
    monkeypatch.setattr(canvas, "MAX_PIXELS_IN_MEMORY", 0)
    monkeypatch.setattr(canvas, "OVERVIEW_SIDE_PX", 40)
    image = decoded(50, 80)
    num_steps = stepper.admit(0, UpscaleJob(image, 24, 8))
    before = stepper.preview(0)
    assert before.shape == (25, 40, 3)
    for _ in range(num_steps // 2):
        stepper.step([0])
    half = stepper.preview(0)
    assert (half[:8] != before[:8]).any()
    assert (half[-4:] == before[-4:]).all()


def test_memory_is_for_small_results_and_files_for_large_ones():
    assert isinstance(make_canvas(DecodedImage(np.zeros((1000, 1000, 3), np.uint8)), 4), MemoryCanvas)
    assert isinstance(make_canvas(DecodedImage(np.zeros((1100, 1100, 3), np.uint8)), 4), FileCanvas)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("cuts", [(0, 40), (0, 1, 40), (0, 13, 14, 40)])
def test_rows_become_a_png(channels, cuts):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 31, channels), dtype=np.uint8)
    file = io.BytesIO()
    writer = PngWriter(file, width=31, height=40, channels=channels)
    for start, stop in pairwise(cuts):
        writer.write_rows(pixels[start:stop])
    writer.close()
    assert read_png_size(file.getvalue()) == (31, 40)
    assert (np.asarray(Image.open(io.BytesIO(file.getvalue()))).reshape(pixels.shape) == pixels).all()


def test_a_png_without_all_its_rows_is_not_ended():
    writer = PngWriter(io.BytesIO(), width=3, height=4, channels=3)
    writer.write_rows(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="1 are missing"):
        writer.close()
