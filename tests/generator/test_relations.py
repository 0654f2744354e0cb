"""Related things of a prompt are named one after another; everything else stays as it is."""

import pytest

from services.generator.relations import Relations

THINGS = {
    "cat": "cats",
    "dog": "dogs",
    "house": "houses",
    "tree": "trees",
    "palm tree": "palm trees",
    "fish": "fish",
    "ufo": "ufos",
}
PHRASES = ("in front of", "on", "on top of", "with", "next to", "above", "behind", "riding")


@pytest.fixture(scope="module")
def relations() -> Relations:
    return Relations(THINGS, PHRASES)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a brown dog in front of a house in the city", "a brown dog and a house in the city"),
        ("a photo of a cat sitting on top of a red house", "a photo of a cat and a red house"),
        ("A little cat riding a dog, digital art", "a little cat and a dog, digital art"),
        ("two trees and a red house", "a tree, a tree and a red house"),
        ("a red house and two trees in the snow", "a red house, a tree and a tree in the snow"),
        ("two palm trees with a cat", "a palm tree, a palm tree and a cat"),
        ("two old trees next to a house", "an old tree, an old tree and a house"),
        ("two fish and a cat", "a fish, a fish and a cat"),
        ("a cat between two trees at night", "a tree, a cat and a tree at night"),
        ("a cat between a dog and a house", "a dog, a cat and a house"),
        ("a cat behind a dog behind a tree", "a cat, a dog and a tree"),
    ],
)
def test_things_that_are_related_are_listed(relations: Relations, prompt: str, expected: str):
    assert relations.list_things(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "two cats",
        "a cat on the beach",
        "a dog and a cat",
        "a cat, a dog and a house",
        "a cat on the left and a dog on the right",
        "a cat to the left of a dog",
        "two dogs and two cats",
        "a cat. Behind it, far away beyond all the hills and lakes, there is a house",
        "cats and dogs",
    ],
)
def test_what_is_not_related_stays_as_it_is(relations: Relations, prompt: str):
    assert relations.list_things(prompt) == prompt


@pytest.fixture(scope="module")
def describing() -> Relations:
    return Relations(
        THINGS,
        PHRASES,
        colours=("red", "white", "orange", "golden"),
        numbers=("two", "three"),
        sizes=("small", "tiny", "big", "tall"),
        usual_sizes={"cat": "small", "dog": "small"},
        usual_colours={"ufo": "white"},
        lone_position="in the middle",
        settings=("snowy", "beach", "night"),
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "a small cat in the middle"),
        ("an orange cat on the beach", "a small orange cat in the middle on the beach"),
        ("a beautiful old house", "a house"),
        ("a white siamese cat at night", "a small white cat in the middle at night"),
        ("my cat", "my small cat in the middle"),
        ("a photo of a golden dog", "a photo of a small golden dog in the middle"),
        ("A fluffy cat", "A small cat in the middle"),
        ("cat at night", "a small cat in the middle at night"),
        ("1 cat", "1 small cat in the middle"),
        ("a red and white house", "a red house"),
        ("a ufo", "a white ufo"),
        ("a big red house", "a big red house"),
        ("a snowy cat", "a snowy small cat in the middle"),
        ("a big red cat", "a big red cat in the middle"),
        ("a tiny cat on the left", "a tiny cat on the left"),
    ],
)
def test_a_thing_is_described_by_size_and_colour_and_alone_it_is_in_the_middle(
    describing: Relations, prompt: str, expected: str
):
    assert describing.say_things(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("cats", "two small cats"),
        ("some houses", "two houses"),
        ("red palm trees on the beach", "two red palm trees on the beach"),
        ("a house with trees", "a house, a tree and a tree"),
        ("two cats", "two small cats"),
        ("3 big cats", "3 big cats"),
        ("three fluffy cats", "three small cats"),
        ("cats and houses", "small cats and houses"),
    ],
)
def test_a_plural_without_a_number_is_two(describing: Relations, prompt: str, expected: str):
    assert describing.say_things(prompt) == expected


@pytest.mark.parametrize("prompt", ["three fish", "a house and a tree", "the beach at night"])
def test_what_needs_no_word_is_given_none(describing: Relations, prompt: str):
    assert describing.say_things(prompt) == prompt


def test_what_a_thing_does_is_no_relation(describing: Relations):
    assert describing.list_things("a cat parked in front of a house") == "a cat and a house"
