"""What callers send as pictures: limits before decoding, clear errors for anything damaged."""

import io

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from services.errors import ImageTooLarge, InvalidRequest
from services.images.codec import ImageLimits, decode_image, encode_png, read_png_size
from tests.png_bomb import png_bomb

LIMITS = ImageLimits(max_bytes=200_000, max_pixels=512 * 512, max_side_px=1024)


def picture(height=9, width=7):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_file(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def test_a_png_comes_back_as_it_was():
    image = picture()
    np.testing.assert_array_equal(decode_image(encode_png(image), LIMITS, "image"), image)


def test_text_chunks_survive_in_any_script():
    data = encode_png(picture(), text={"prompt": "ein rotes Haus 🌙"})
    assert Image.open(io.BytesIO(data)).text["prompt"] == "ein rotes Haus 🌙"


@pytest.mark.parametrize("size", [(100_000, 100_000), (2_000, 1), (513, 512)])
def test_a_bomb_is_refused_by_its_header(size):
    with pytest.raises(ImageTooLarge, match="init_image: must have at most"):
        decode_image(png_bomb(*size), LIMITS, "init_image")


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(ImageTooLarge, match="200000 bytes"):
        decode_image(bytes(200_001), LIMITS, "image")


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(100)], ids=repr)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(InvalidRequest, match=r"^image: "):
        decode_image(data, LIMITS, "image")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_short_is_refused(file_format):
    data = as_file(Image.fromarray(picture(64, 64)), file_format)
    with pytest.raises(InvalidRequest, match="damaged or cut short|must be a PNG"):
        decode_image(data[: len(data) // 2], LIMITS, "image")


def test_a_format_that_no_camera_or_program_of_today_writes_is_refused():
    data = as_file(Image.fromarray(picture()), "PCX")
    with pytest.raises(InvalidRequest, match="PNG, JPEG, WebP"):
        decode_image(data, LIMITS, "image")


def test_transparency_becomes_white():
    data = as_file(Image.new("RGBA", (3, 2), (255, 0, 0, 0)), "PNG")
    assert (decode_image(data, LIMITS, "image") == 255).all()


def test_a_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_file(Image.fromarray(picture(8, 4)), "JPEG", exif=exif)
    assert decode_image(data, LIMITS, "image").shape == (4, 8, 3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_a_picture_or_a_clear_refusal(at, junk):
    for file_format in ("PNG", "JPEG", "WEBP"):
        data = bytearray(as_file(Image.fromarray(picture(16, 16)), file_format))
        data[at : at + len(junk)] = junk
        try:
            image = decode_image(bytes(data), LIMITS, "image")
        except InvalidRequest:
            continue
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


def test_the_size_of_a_png_is_read_without_decoding_it():
    assert read_png_size(encode_png(picture(9, 7))) == (7, 9)
    assert read_png_size(png_bomb(100_000, 3)) == (100_000, 3)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", as_file(Image.new("RGB", (2, 2)), "GIF")])
def test_what_is_no_png_has_no_size(data):
    with pytest.raises(ValueError, match="no PNG file|cut short"):
        read_png_size(data)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_png_that_is_cut_short_or_changed_anywhere_has_no_size(data):
    whole = encode_png(picture(16, 16))
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    for damaged in (whole[:at], bytes(changed)):
        with pytest.raises(ValueError, match="PNG file"):
            read_png_size(damaged)
