"""Bytes that are meant to be a picture, or the mask of one."""

import numpy as np
from hypothesis import given

from services.errors import InvalidRequest
from services.images.codec import ImageLimits, decode_image
from services.images.masks import decode_mask, has_alpha
from tests.fuzz.answers import INSIDE
from tests.fuzz.strategies import fuzzed, pictures

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=256 * 256, max_side_px=512)


@fuzzed(300)
@given(pictures)
def test_any_bytes_are_a_picture_within_the_limits_or_an_error_that_names_the_field(data):
    try:
        picture = decode_image(data, LIMITS, "init_images[0].data")
    except InvalidRequest as error:
        complaint = str(error)
    else:
        height, width, channels = picture.shape
        assert (picture.dtype, channels) == (np.uint8, 3)
        assert height * width <= LIMITS.max_pixels
        return
    assert complaint.startswith("init_images[0].data: ")
    assert not INSIDE.search(complaint), complaint


@fuzzed(300)
@given(pictures)
def test_any_bytes_are_a_mask_of_the_picture_or_an_error_that_names_the_field(data):
    has_alpha(data)
    try:
        mask = decode_mask(data, "mask", width=8, height=8)
    except InvalidRequest as error:
        complaint = str(error)
    else:
        assert (mask.shape, mask.dtype) == ((8, 8), bool)
        assert mask.any()
        return
    assert complaint.startswith("mask: ")
    assert not INSIDE.search(complaint), complaint
