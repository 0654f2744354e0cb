"""Masks as callers send them: what counts of a pixel, and clear errors for what is no mask of the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from services.errors import ImageTooLarge, InvalidRequest
from services.images.masks import MASK_LIMITS, decode_mask, has_alpha

# True is repainted: the left half of a picture that is 6 wide and 4 high.
LEFT = np.zeros((4, 6), bool)
LEFT[:, :3] = True
LEVELS = np.where(LEFT, 0, 255).astype(np.uint8)


def as_png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def rgba(levels=LEVELS):
    colours = np.random.default_rng(0).integers(0, 256, (*levels.shape, 3), np.uint8)
    return as_png(Image.fromarray(np.dstack([colours, levels])))


def with_transparent_colour():
    palette = Image.fromarray(np.where(LEFT, 1, 0).astype(np.uint8)).convert("P")
    return as_png(palette, transparency=1)


FORMS = {
    "alpha": rgba(),
    "grey and alpha": as_png(Image.merge("LA", [Image.new("L", (6, 4), 255), Image.fromarray(LEVELS)])),
    "grey": as_png(Image.fromarray(LEVELS)),
    "one bit": as_png(Image.fromarray(LEVELS).convert("1")),
    "colours": as_png(Image.fromarray(LEVELS).convert("RGB")),
    "16 bits": as_png(Image.fromarray(LEVELS.astype(np.uint16) * 257)),
    "a palette with a transparent colour": with_transparent_colour(),
}


def decode(data):
    return decode_mask(data, "mask", width=6, height=4)


@pytest.mark.parametrize("form", FORMS)
def test_transparent_or_black_is_repainted(form):
    np.testing.assert_array_equal(decode(FORMS[form]), LEFT)


@pytest.mark.parametrize(("level", "is_repainted"), [(0, True), (127, True), (128, False), (254, False)])
def test_a_pixel_is_repainted_below_half(level, is_repainted):
    levels = LEVELS.copy()
    levels[0, 5] = level
    assert decode(rgba(levels))[0, 5] == is_repainted


def test_a_mask_may_be_all_transparent():
    assert decode(rgba(np.zeros_like(LEVELS))).all()


def test_a_mask_is_turned_as_the_picture_is():
    file = Image.fromarray(LEVELS.T)
    exif = file.getexif()
    exif[0x0112] = 5
    np.testing.assert_array_equal(decode(as_png(file, exif=exif)), LEFT)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "must be a PNG file, got no bytes"),
        (b"GIF89a", "must be a PNG file"),
        (rgba()[:-30], "damaged or cut short"),
        (rgba(np.full((4, 6), 255, np.uint8)), "must have a transparent"),
        (rgba(np.zeros((6, 4), np.uint8)), "must have the size of the picture, 6x4, got 4x6"),
        (rgba(np.zeros((8, 12), np.uint8)), "got 12x8"),
    ],
)
def test_what_is_no_mask_of_the_picture_is_refused(data, complaint):
    with pytest.raises(InvalidRequest, match=complaint) as raised:
        decode(data)
    assert raised.value.field == "mask"


def test_a_jpeg_is_no_mask():
    file = io.BytesIO()
    Image.fromarray(LEVELS).save(file, "JPEG")
    with pytest.raises(InvalidRequest, match="must be a PNG file"):
        decode(file.getvalue())


def test_a_mask_of_too_many_bytes_is_refused_unread():
    with pytest.raises(ImageTooLarge, match=f"at most {MASK_LIMITS.max_bytes} bytes"):
        decode(bytes(MASK_LIMITS.max_bytes + 1))


def test_a_mask_of_too_many_pixels_is_refused_by_its_header():
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(as_png(Image.new("1", (20_000, 1_000))))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_explains_whether_it_has_an_alpha(form):
    assert has_alpha(FORMS[form]) == (
        form in ("alpha", "grey and alpha", "a palette with a transparent colour")
    )


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" * 10])
def test_what_is_no_png_has_no_alpha(data):
    assert not has_alpha(data)
