"""The world of the built-in models: the same seed is the same scene, picture and caption; held-out is held out."""

import random
from dataclasses import replace

import numpy as np
import pytest

from training.world.captions import Caption, caption, grammar_caption
from training.world.drawing import Painter
from training.world.natural_captions import natural_caption
from training.world.phrases import PLACE_NOUNS, PLACE_PHRASES, SKY_PHRASES, plural
from training.world.scenes import (
    LOOKALIKES,
    NARROW,
    WIDE,
    Scene,
    World,
    crowded,
    in_every_slot,
    is_held_out,
    of_lookalikes,
    sample_lesson,
    sample_scene,
    sample_scenes,
)
from training.world.sprites import stand_in_sprites
from training.world.vocabulary import (
    COLOURS,
    FOUR_SLOTS,
    NARROW_OBJECTS,
    NARROW_PLACES,
    OBJECTS,
    PLACES,
    RELATIONS,
    SLOTS,
    TIMES,
    WEATHERS,
)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(stand_in_sprites(), 128)


def test_the_same_seed_gives_the_same_scenes():
    assert sample_scenes(20, seed=5) == sample_scenes(20, seed=5)
    assert sample_scenes(20, seed=5) != sample_scenes(20, seed=6)


def test_two_painters_paint_a_scene_alike():
    scene = sample_scene(random.Random(3))

    first, second = (Painter(stand_in_sprites(), 128).paint(scene) for _ in range(2))

    np.testing.assert_array_equal(first, second)


def test_the_same_seed_gives_the_same_caption():
    scene = sample_scene(random.Random(3))

    assert caption(scene, random.Random(8)) == caption(scene, random.Random(8))


def test_training_scenes_hold_nothing_that_is_held_out():
    assert not any(is_held_out(scene) for scene in sample_scenes(300, seed=1))
    assert all(is_held_out(scene) for scene in sample_scenes(50, seed=1, held_out=True))


def test_the_narrow_world_is_as_large_as_promised():
    scenes = sample_scenes(2000, seed=2, held_out=None)

    assert len({o.name for scene in scenes for o in scene.objects}) == len(NARROW_OBJECTS) == 25
    assert {o.colour for scene in scenes for o in scene.objects} - {None} == set(COLOURS)
    assert {scene.place for scene in scenes} == set(NARROW_PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.weather for scene in scenes} == set(WEATHERS)


def test_the_wide_world_has_a_hundred_objects_in_every_place_one_to_four_of_a_kind():
    scenes = sample_scenes(6000, seed=2, world=WIDE, held_out=None)
    alike = {len(scene.objects) for scene in scenes if len({o.name for o in scene.objects}) == 1}

    assert len({o.name for scene in scenes for o in scene.objects}) == len(OBJECTS) >= 100
    assert {scene.place for scene in scenes} == set(PLACES)
    assert alike == {1, 2, 3, 4}
    assert {o.slot for scene in scenes for o in scene.objects} == {*SLOTS, *FOUR_SLOTS, *RELATIONS}


def test_it_is_always_night_in_space():
    in_space = [s for s in sample_scenes(3000, seed=2, world=WIDE) if s.place == "space"]

    assert {(s.time, s.weather, s.sky) for s in in_space} == {("night", "clear", None)}


def test_what_is_on_another_stands_higher_than_on_the_ground(painter: Painter):
    scene = next(s for s in sample_scenes(3000, seed=2, world=WIDE) if s.objects[-1].slot == "on")
    below, above = scene.objects

    def lowest_row(slot: str) -> int:
        layer = painter.object_layer(replace(above, slot=slot), scene.time, below)
        return int(np.flatnonzero(layer[..., 3].any(1)).max())

    assert lowest_row("on") < lowest_row("center") - 8


def test_a_picture_can_be_painted_at_four_times_the_size():
    scene = sample_scene(random.Random(4))

    picture = Painter(stand_in_sprites(), 512).paint(scene)

    assert picture.shape == (512, 512, 3)


def test_objects_change_pixels_under_their_mask_only(painter: Painter):
    scene = sample_scene(random.Random(7))
    changed = (painter.paint(scene) != painter.background(scene)).any(-1)

    inside = painter.object_mask(scene)

    # The rest are soft edges and the shadow on the ground.
    assert changed[inside].mean() > 0.99
    assert (changed & ~inside).sum() < 0.35 * inside.sum() + 100


@pytest.mark.parametrize("world", [NARROW, WIDE])
def test_every_caption_names_all_objects_and_colours(world):
    rng = random.Random(1)
    for scene in sample_scenes(200, seed=9, world=world):
        text = caption(scene, rng, plain=True).text
        for o in scene.objects:
            words = OBJECTS[o.name].words
            assert any(word in text or plural(word) in text for word in words), text


def test_people_leave_out_most_but_never_what_there_is():
    rng = random.Random(1)
    spoken = [(scene, natural_caption(scene, rng)) for scene in sample_scenes(600, seed=9, world=WIDE)]

    for scene, said in spoken:
        for o in scene.objects:
            words = OBJECTS[o.name].words
            assert any(word in said.text or plural(word) in said.text for word in words), said.text
    shares = [
        np.mean([what in said.mentions for _, said in spoken])
        for what in ("place", "time", "weather", "size")
    ]
    assert all(0.02 < share < 0.7 for share in shares)


def test_every_place_can_be_said_with_objects_and_alone():
    assert set(PLACE_PHRASES) == set(PLACE_NOUNS) == set(PLACES)


def test_a_place_without_objects_is_painted_and_reported(painter: Painter):
    rng = random.Random(1)
    scene = sample_lesson(rng, WIDE, empty_share=1.0)

    said = natural_caption(scene, rng)

    assert not scene.objects
    assert any(noun in said.text for noun in PLACE_NOUNS[scene.place])
    np.testing.assert_array_equal(painter.paint(scene), painter.background(scene))


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_are_said(relation: str):
    rng = random.Random(1)
    words = {
        "above": ("above", "over", "under", "below"),
        "on": ("on", "under", "riding"),
        "front": ("in front of", "behind"),
    }
    scenes = [s for s in sample_scenes(2000, seed=9, world=WIDE) if s.objects[-1].slot == relation]

    assert scenes
    for scene in scenes:
        said = natural_caption(scene, rng)
        assert "relation" in said.mentions
        assert any(f" {word} " in said.text for word in words[relation]), said.text


@pytest.mark.parametrize(("count", "number"), [(2, "two"), (3, "three"), (4, "four")])
def test_things_of_a_kind_are_counted(count: int, number: str):
    scenes = [
        s
        for s in sample_scenes(3000, seed=9, world=WIDE)
        if len(s.objects) == count and len({o.name for o in s.objects}) == 1
    ]

    said = [grammar_caption(scene, random.Random(i), plain=True).text for i, scene in enumerate(scenes)]

    assert any(f"{number} " in text for text in said)
    assert not any(text.startswith("a ") and "a pair" not in text for text in said)


def test_a_pair_and_another_are_two_and_one():
    scenes = [
        s
        for s in sample_scenes(3000, seed=9, world=WIDE)
        if len(s.objects) == 3
        and s.objects[0] == replace(s.objects[1], slot="left") != s.objects[2]
        and s.objects[2].name != s.objects[0].name
    ]

    said = [grammar_caption(scene, random.Random(i), plain=True).text for i, scene in enumerate(scenes)]

    assert said
    assert all("two" in text or "2 " in text or "a pair of" in text for text in said)


def test_a_caption_mentions_what_its_list_of_mentions_has():
    scene = next(s for s in sample_scenes(200, seed=3) if s.sky == "moon" and s.weather == "clear")
    captions = [grammar_caption(scene, random.Random(i)) for i in range(50)]

    def says_moon(spoken: Caption) -> bool:
        return any(phrase in spoken.text for phrase in SKY_PHRASES["moon", "night"])

    # Articles may be dropped, so only whole phrases prove that it is said.
    assert all("sky" in spoken.mentions for spoken in captions if says_moon(spoken))
    assert any("sky" not in spoken.mentions for spoken in captions)


def test_objects_whose_slots_go_unsaid_are_named_from_left_to_right():
    rng = random.Random(1)

    def first_word(scene: Scene, text: str, i: int) -> int:
        return min(text.find(word) for word in OBJECTS[scene.objects[i].name].words if word in text)

    reported = 0
    for scene in sample_scenes(400, seed=9):
        spoken = grammar_caption(scene, rng)
        if len({o.name for o in scene.objects}) == len(scene.objects) > 1 and "slot" not in spoken.mentions:
            places = [first_word(scene, spoken.text, i) for i in range(len(scene.objects))]
            assert places == sorted(places), spoken.text
            reported += 1
    assert reported > 20


def test_a_crowded_world_shows_more_different_objects_in_a_scene():
    def num_different(world: World) -> int:
        return sum(len({o.name for o in scene.objects}) for scene in sample_scenes(200, seed=5, world=world))

    assert num_different(crowded(NARROW)) > 1.2 * num_different(NARROW)


def test_lookalikes_differ_in_nothing_but_what_they_are():
    rng = random.Random(6)
    alike = [of_lookalikes(scene, rng) for scene in sample_scenes(100, seed=5)]

    for scene in alike:
        assert len({(o.colour, o.size) for o in scene.objects}) == 1
        assert any({o.name for o in scene.objects} <= set(pair) for pair in LOOKALIKES)
    assert {o.name for scene in alike for o in scene.objects} == {"dog", "cat", "cactus", "tree"}


def test_an_object_in_every_slot_covers_where_it_is_and_where_it_might_have_been(painter: Painter):
    for scene in sample_scenes(20, seed=5):
        everywhere = painter.object_mask(in_every_slot(scene))

        assert everywhere[painter.object_mask(scene)].all()
        assert {o.slot for o in in_every_slot(scene).objects} == {"left", "center", "right"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cactus", "cacti"),
        ("snowman", "snowmen"),
        ("puppy", "puppies"),
        ("fir tree", "fir trees"),
        ("bus", "buses"),
    ],
)
def test_plurals_are_english(word: str, expected: str):
    assert plural(word) == expected
