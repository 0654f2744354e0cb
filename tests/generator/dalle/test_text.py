import json

import pytest
from hypothesis import given, settings, strategies as st

from services.generator.dalle.text.normalizer import TextNormalizer, read_word_costs
from tests.generator.conftest import GOLDEN

ROWS = json.loads((GOLDEN / "text" / "normalizer.json").read_text("utf-8"))["rows"]


@pytest.fixture(scope="module")
def normalize():
    return TextNormalizer(read_word_costs(GOLDEN / "text" / "enwiki-words-frequency.txt"))


@pytest.mark.parametrize("row", ROWS, ids=[row["in"] for row in ROWS])
def test_a_prompt_is_normalized_as_the_reference_does(normalize, row):
    assert normalize(row["in"]) == row["out"]


def test_a_hashtag_stays_whole_without_a_word_list():
    assert TextNormalizer()("a #tinyhouse") == " a tinyhouse"


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_script_becomes_one_line_of_lower_case_ascii_behind_one_space(prompt):
    text = TextNormalizer()(prompt)
    assert text.isascii()
    assert text == text.lower()
    assert text == " " + " ".join(text.split())


@given(st.text(alphabet="a'#x_ 1.,<person>", max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_punctuation_breaks_it(prompt):
    assert TextNormalizer({"a": 0.0, "person": 1.0})(prompt).startswith(" ")
