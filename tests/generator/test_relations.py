"""Things that a prompt relates are told one after another; what is said otherwise stays as it is."""

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
