"""Files as telephones, scanners and drawing programs write them, each against the value that is right for it."""

import numpy as np
import pytest
from PIL import Image

from services.errors import InvalidRequest
from services.images.codec import FORMATS, MAX_PIXELS, decode_image
from services.images.fit import fit, fit_mask, fit_picture
from services.images.masks import decode_mask, mask_of_transparency
from tests.services.images.everyday_images import (
    COLOURS,
    LIMITS,
    TABLE,
    as_file,
    decoded,
    display_p3,
    distance,
    exif_of,
    noise,
    turned,
)
from tests.triptych.cli.command_line import ROOT


@pytest.mark.parametrize(("make", "right", "most"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_right_value(make, right, most):
    got = decode_image(make(), LIMITS, "image")
    assert got.shape == right().shape
    assert distance(got, right()) <= most


@pytest.mark.parametrize("turn", [1, 6])
def test_a_photo_of_an_iphone_is_upright_and_in_srgb(turn):
    """HEIC with a Display P3 profile; libheif stores the rotation in the container."""
    pixels = np.full((48, 64, 3), (200, 80, 60), np.uint8)
    pixels[:8] = (60, 80, 200)
    photo = Image.fromarray(pixels)
    # The encoder takes the rotation from here.
    photo.info["exif"] = exif_of(turn).tobytes()
    got = decoded(photo, "HEIF", icc_profile=display_p3(), quality=95).rgb
    right = decoded(Image.fromarray(turned(pixels, turn)), icc_profile=display_p3()).rgb
    assert got.shape == right.shape
    # Off the edge, which a lossy format blurs.
    assert distance(got[12:-4, 4:-12].mean((0, 1)), right[12:-4, 4:-12].mean((0, 1))) <= 6


def test_heic_keeps_its_alpha():
    got = decoded(Image.new("RGBA", (64, 64), (200, 80, 60, 100)), "HEIF", quality=95)
    assert got.alpha is not None
    assert distance(got.alpha, np.full((64, 64), 100)) <= 3


def test_heic_where_nothing_reads_it_is_explained(monkeypatch):
    data = as_file(Image.fromarray(COLOURS), "HEIF")
    monkeypatch.delitem(FORMATS, "HEIF")
    with pytest.raises(InvalidRequest, match="is a HEIC file"):
        decode_image(data, LIMITS, "image")


def test_the_table_has_forty_pictures():
    assert len({name for name, *_ in TABLE}) >= 40


def test_the_table_of_the_docs_has_each():
    docs = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    assert [name for name, *_ in TABLE if f"| {name} |" not in docs] == []


def test_a_wide_profile_becomes_srgb():
    pixels = np.full((8, 8, 3), (200, 80, 60), np.uint8)
    (profile,) = [p for p in (display_p3(),) if p]
    got = decoded(Image.fromarray(pixels), icc_profile=profile).rgb
    assert distance(got, np.full_like(pixels, (216, 69, 50))) <= 1


def test_a_profile_keeps_the_alpha():
    picture = Image.new("RGBA", (8, 8), (200, 80, 60, 100))
    got = decoded(picture, icc_profile=display_p3())
    assert distance(got.rgb, np.full((8, 8, 3), (216, 69, 50))) <= 1
    assert (got.alpha == 100).all()


@pytest.mark.parametrize(
    ("mode", "is_gray", "has_alpha"),
    [("L", True, False), ("LA", True, True), ("RGB", False, False), ("RGBA", False, True)],
)
def test_gray_and_alpha_are_distinguished(mode, is_gray, has_alpha):
    got = decoded(noise(mode))
    assert (got.is_gray, got.alpha is not None) == (is_gray, has_alpha)
    if has_alpha:
        assert (got.alpha == np.asarray(noise(mode))[..., -1]).all()


def test_an_alpha_that_hides_nothing_is_none():
    assert decoded(Image.new("RGBA", (4, 4), (1, 2, 3, 255))).alpha is None


@pytest.mark.parametrize("size", [(67, 131), (131, 67), (300, 200), (50, 50), (1, 90)])
@pytest.mark.parametrize("how", ["crop", "pad"])
def test_a_picture_is_never_squeezed(size, how):
    """A disc in the middle stays as wide as it is high."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    radius = min(size) / 3
    disc = (x - width / 2 + 0.5) ** 2 + (y - height / 2 + 0.5) ** 2 <= radius**2
    picture = np.where(disc[..., None], np.uint8([0, 0, 255]), np.uint8([255, 255, 255]))
    fitted = fit_picture(picture, 64, 64, how)
    assert fitted.shape == (64, 64, 3)
    if radius > 5:
        seen = fitted[..., 0] < 128
        assert abs(int(seen.any(0).sum()) - int(seen.any(1).sum())) <= 2


def test_a_mask_is_brought_along_with_its_picture():
    mask = np.zeros((100, 200), bool)
    mask[50, 100] = True
    for how in ("crop", "pad"):
        assert fit_mask(mask, 32, 32, how)[14:18, 14:18].any()
    beside = np.zeros((100, 200), bool)
    beside[:, 0] = True
    assert not fit_mask(beside, 32, 32, "crop").any()
    assert fit_mask(beside, 32, 32, "pad").any()


def test_a_picture_of_that_size_is_left_alone():
    picture = Image.fromarray(COLOURS)
    assert fit(picture, 64, 48) is picture


def test_transparency_is_a_mask():
    half = np.full((48, 64, 4), 255, np.uint8)
    half[:, :10, 3] = 0
    mask = decode_mask(
        mask_of_transparency(as_file(Image.fromarray(half), "PNG")), "mask", width=64, height=48
    )
    assert mask[:, :10].all()
    assert not mask[:, 10:].any()
    assert mask_of_transparency(as_file(noise("RGB"), "PNG")) is None
    assert mask_of_transparency(b"no picture") is None


def test_twenty_five_megapixels_are_read():
    side = int(MAX_PIXELS**0.5)
    data = as_file(Image.new("L", (side, side), 9), "PNG")
    assert decode_image(data, LIMITS, "image").shape == (side, side, 3)
