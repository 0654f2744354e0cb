"""Which words of a prompt are not among those that a model lists."""

import pytest

from triptych.vocabulary import unknown_words

KNOWN = ["house", "full moon", "red", "bus"]


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a red house under a full moon", []),
        ("Two RED houses, and buses!", ["two"]),
        ("a moon over the wizard's wizard", ["wizard", "s"]),
        ("ein rotes Haus", ["ein", "rotes", "haus"]),
        ("", []),
        ("12 34", []),
    ],
)
def test_unknown_words_are_named_once_and_in_order(prompt, unknown):
    assert unknown_words(prompt, KNOWN) == unknown
