"""Words that the built-in model does not know are drawn as near ones, and what is no object stays as it is."""

import json
from pathlib import Path

import pytest

from services.errors import ModelError
from services.generator.vocabulary import FILE, Replaced, Replacement, Vocabulary, read_vocabulary
from services.weights.model_folder import FileEntry, Manifest, open_model

KNOWN = {"cat": "cats", "car": "cars", "house": "houses", "cactus": "cacti", "ufo": "ufos", "orange tree": "orange trees",
         "sea": "seas", "mountains": "mountains", "boat": "boats", "man": "men"}  # fmt: skip
REPLACEMENTS = {
    "kitten": ("cat", 0.79), "automobile": ("car", 0.9), "cottage": ("house", 0.8), "lemon": ("cat", 0.5),
    "race car": ("car", 0.8), "fireman": ("man", 0.7), "agave": ("cactus", 0.6), "calf": ("cat", 0.5), "spacecraft": ("ufo", 0.7),
    "canary": ("cat", 0.5), "geese": ("cats", 0.5), "turquoise": ("blue", 0.9), "lake": ("sea", 0.7), "cat cafe": ("house", 0.6), "cave": ("mountains", 0.9),
}  # fmt: skip
EXAMPLES = ("a red house", "two cats", "a car by the sea", "a ufo at night", "three cacti")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(KNOWN, REPLACEMENTS, EXAMPLES)


@pytest.fixture(scope="module")
def built_in() -> Vocabulary:
    found = read_vocabulary(*open_model("tiny", "generator"))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a kitten", "a cat"),
        ("two kittens", "two cats"),
        ("Kittens", "Cats"),
        ("KITTEN!", "Cat!"),
        ("a kitten's house", "a cat's house"),
        ("the kittens' house", "the cats' house"),
        ("an automobile", "a car"),
        ("An  old automobile", "An  old car"),
        ("a spacecraft", "a ufo"),
        ("firemen, canaries and calves", "men, cats and cats"),
        ("an agave and three agaves", "a cactus and three cacti"),
        ("geese by a lake", "cats by a sea"),
        ("a race car", "a car"),
        ("a race-car and race cars", "a car and cars"),
        ("a lemon car", "a lemon car"),  # no lemon is asked for
        ("a lemon, a car", "a cat, a car"),
        ("an orange tree", "an orange tree"),
        ("a cat cafe", "a house"),
        ("a turquoise house", "a blue house"),
        ("two cats with a boat", "two cats with a boat"),
        ("A cave near a cat", "mountains near a cat"),
        ("\U0001f431", "cat"),
        ("a \U0001f697 and a kitten", "a car and a cat"),
    ],
)
def test_a_word_is_replaced_in_the_form_that_it_has(vocabulary: Vocabulary, prompt: str, expected: str):
    replaced = vocabulary.replace_words(prompt)

    assert replaced.prompt == expected
    assert replaced.known


def test_a_replacement_is_reported_once_as_the_prompt_has_the_word(vocabulary: Vocabulary):
    replaced = vocabulary.replace_words("a Kitten, two kittens, two kittens")

    assert replaced.replacements == (Replacement("Kitten", "cat", 0.79), Replacement("kittens", "cats", 0.79))


@pytest.mark.parametrize(
    "prompt", ["", "   ", "zxqv", "the very beautiful", "a turquoise blorg", "!?", "\U0001f642"]
)
def test_where_nothing_is_known_another_scene_is_drawn_and_three_are_named(
    vocabulary: Vocabulary, prompt: str
):
    replaced = vocabulary.replace_words(prompt)

    assert not replaced.known
    assert replaced.prompt in EXAMPLES
    assert len({replaced.prompt, *replaced.suggestions}) == 4
    assert vocabulary.replace_words(prompt) == replaced


def test_a_known_word_among_unknown_ones_is_enough(vocabulary: Vocabulary):
    assert vocabulary.replace_words("zxqv cat blorg").prompt == "zxqv cat blorg"
    assert vocabulary.replace_words("zxqv cat blorg").known


@pytest.fixture(scope="module")
def guessing() -> Vocabulary:
    guesses = {
        "duck": ("cat", 0.4),
        "hot dog": ("house", 0.3),
        "pebble": ("house", 0.25),
        "sheep": ("cat", 0.4),
    }
    quantities = {"a couple of": ("two", 1.0), "dozens of": ("three", 0.9), "four": ("three", 0.9)}
    return Vocabulary(
        {**KNOWN, "dog": "dogs"},
        REPLACEMENTS,
        EXAMPLES,
        guesses=guesses,
        things=["cat", "car", "house", "cactus", "boat", "dog"],
        quantities=quantities,
        numbers=["two", "three"],
        correct_words=["horse"],
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # A far replacement is made where no thing would be drawn otherwise.
        ("a duck", "a cat"),
        ("a duck on the sea", "a cat on the sea"),
        ("a duck and a house", "a duck and a house"),
        ("a pebble", "a house"),
        ("a pebble by the sea", "a pebble by the sea"),
        # A name of two words is no matter of its parts.
        ("a hot dog", "a house"),
        ("a hot dog and a cat", "a hot dog and a cat"),
        # Misspelt.
        ("a housse", "a house"),
        ("hte cactsu", "hte cactus"),
        ("catt on the sea", "cat on the sea"),
        ("Kittne!", "Cat!"),
        # Several.
        ("a couple of big kittens", "two big cats"),
        ("dozens of sheep", "three cats"),
        ("two sheep", "two cats"),
        ("four red cars", "three red cars"),
        ("12 cats", "three cats"),
        ("2 cats", "2 cats"),
        ("four seas, a cat", "four seas, a cat"),
        # Emoji, accents.
        ("\U0001f431\U0001f431", "two cats"),
        ("\U0001f431\U0001f697", "cat car"),
        ("a \U0001f697", "a car"),
        ("a \U0001f6f8 and a \U0001f34e\U0001f34e a cat", "a flying saucer and two red apples a cat"),
        # A far thing beside another one.
        ("a duck with a pebble", "a cat with a pebble"),
        ("\u2764\ufe0f a cat", "red heart a cat"),
        ("a càctus", "a càctus"),
    ],
)
def test_far_words_misspelt_words_and_numbers_are_read(guessing: Vocabulary, prompt: str, expected: str):
    replaced = guessing.replace_words(prompt)

    assert replaced.prompt == expected
    assert replaced.known


def test_a_word_of_english_is_not_taken_for_a_misspelt_one(guessing: Vocabulary):
    assert not guessing.replace_words("a horse").known
    assert guessing.replace_words("a hpuse").known


def test_a_number_that_means_the_same_is_no_replacement(guessing: Vocabulary):
    assert guessing.replace_words("a couple of cats").replacements == ()
    assert guessing.replace_words("dozens of cats").replacements == (Replacement("dozens of", "three", 0.9),)


def test_a_model_that_wants_a_place_gets_one_where_the_prompt_names_none():
    settings = {"boat": ["at sea"], "boats": ["at sea"], "": ["in a meadow", "in the snow"]}
    wants_a_place = Vocabulary(KNOWN, REPLACEMENTS, EXAMPLES, places=["sea", "seas"], settings=settings)

    assert wants_a_place.replace_words("two boats").prompt == "two boats at sea"
    assert wants_a_place.replace_words("a kitten by a lake").prompt == "a cat by a sea"
    assert wants_a_place.replace_words("a kitten").prompt in ("a cat in a meadow", "a cat in the snow")
    assert wants_a_place.replace_words("a kitten") == wants_a_place.replace_words("a kitten")


def test_a_published_model_has_no_vocabulary(tmp_path: Path):
    assert read_vocabulary(tmp_path, Manifest("mini", "generator", {})) is None


def test_a_broken_table_is_reported(tmp_path: Path):
    (tmp_path / "dalle").mkdir()
    (tmp_path / FILE).write_text(json.dumps({"known": {}}))

    with pytest.raises(ModelError, match=r"words\.json is not a table of words"):
        read_vocabulary(
            tmp_path, Manifest("tiny", "generator", {FILE: FileEntry("", 0)}, example_prompts=EXAMPLES)
        )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a kitten", "cat"),
        ("two kittens in the snow", "cats"),
        ("a red sedan", "car"),
        ("a cozy bungalow", "house"),
        ("a poodle", "dog"),
        ("a sparrow", "bird"),
        ("a yacht", "sailboat"),
        ("a sloop", "sailboat"),
        ("a jungle with a cat", "forest"),
        ("two salmon", "fish"),
        ("a trout", "fish"),
        ("three dachshunds", "dogs"),
        ("a mansion", "house"),
        ("a turquoise car", "blue"),
        ("a horse in a meadow", "dog"),
        ("a tiger", "cat"),
        ("an old lady with a dog", "robot"),
        ("a cup of coffee", "apple"),
        ("a king", "robot"),
        ("a cheeseburger", "apple"),
        ("coffee", "apple"),
        ("a dozen roses", "three"),
        ("a seal", "fish"),
        ("a pizza", "apple"),
        ("an airplane", "rocket"),
        ("a light bulb", "robot"),
        ("a housse", "house"),
    ],
)
def test_the_built_in_table_knows_what_is_near(built_in: Vocabulary, prompt: str, expected: str):
    replacements = built_in.replace_words(prompt).replacements

    assert expected in {found.replacement for found in replacements}, replacements


@pytest.mark.parametrize(
    "prompt",
    [
        "a cute cat",
        "a beautiful old house at night",
        "a photo of a dog, highly detailed, digital art, trending on artstation",
        "the big red car is very fast and looks great",
        "a happy little penguin standing on the left",
        "one tiny blue bird under a full moon",
        "a castle and a red house",
        "a painting of a castle in the style of an old master",
        "a dog running and playing with another dog",
        "a light green car",
        "a white siamese-like cat, my favorite kind of picture",
    ],
)
def test_what_carries_no_object_is_left_alone(built_in: Vocabulary, prompt: str):
    assert built_in.replace_words(prompt).replacements == ()


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("two oaks and a red cabin at night", "a small oak, a small oak and a red house at night"),
        ("a cute cat", "a small cat in the middle"),
        ("a beautiful old house at night", "a house at night"),
        ("a pink princess castle", "a small pink castle in the middle"),
        ("a happy little penguin standing on the left", "a little penguin standing on the left"),
        ("flowers in a field", "two small flowers in a field"),
        ("a big red heart", "a big red heart in the middle"),
    ],
)
def test_the_built_in_model_is_given_things_in_the_only_way_that_it_knows(
    built_in: Vocabulary, prompt: str, drawn: str
):
    assert built_in.replace_words(prompt).prompt.startswith(drawn)


def test_the_built_in_table_is_small_and_replaces_by_known_words_alone():
    folder, manifest = open_model("tiny", "generator")
    raw = json.loads((folder / FILE).read_text("utf-8"))
    colours = set(manifest.vocabulary["colours"])
    counts = {"two", "three"}
    known = {*raw["known"], *raw["known"].values(), *colours, *counts}

    tables = (raw["replacements"], raw["guesses"], raw["quantities"])
    entries = [entry for table in tables for entry in table.values()]

    assert manifest.files[FILE].num_bytes < 1_000_000
    assert len(entries) > 20_000
    assert {near for near, _ in entries} <= known
    assert not raw["replacements"].keys() & known
    # A colour, and a fruit where nothing else is named.
    assert raw["guesses"].keys() & known == {"orange"}
    assert not raw["replacements"].keys() & raw["guesses"].keys()
    assert all(0 < similarity <= 1 for _, similarity in entries)


@pytest.mark.parametrize(
    "prompt",
    [
        "a kitten",
        "two kittens next to a cottage",
        "qwerty",
        "a cute baby sea otter",
        "an automobile at night",
        "trees",
        "🎉",
    ],
)
def test_what_is_drawn_is_drawn_as_it_is(built_in: Vocabulary, prompt: str):
    """A gateway gives the generator the prompt that it has read already."""
    drawn = built_in.replace_words(prompt).prompt
    assert built_in.replace_words(drawn) == Replaced(drawn)
