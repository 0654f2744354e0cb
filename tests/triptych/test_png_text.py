"""Text in PNG files, read back by Pillow."""

import io

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from triptych.png_text import with_text


def white_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "white").save(buffer, "PNG")
    return buffer.getvalue()


def test_the_pixels_stay_as_they_are():
    with Image.open(io.BytesIO(with_text(white_png(), {"prompt": "snow"}))) as picture:
        assert picture.convert("RGB").tobytes() == b"\xff" * 18


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_prompt_comes_back_as_it_was(prompt):
    with Image.open(io.BytesIO(with_text(white_png(), {"prompt": prompt}))) as picture:
        picture.load()
        assert str(picture.text["prompt"]) == prompt


def test_what_is_no_png_is_refused():
    with pytest.raises(ValueError, match="expected a PNG file"):
        with_text(b"\xff\xd8\xff\xe0 a JPEG", {"prompt": "snow"})


def test_a_keyword_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="1 to 79"):
        with_text(white_png(), {"k" * 80: "snow"})
