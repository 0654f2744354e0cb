"""Natural prompts: the list is of the world, flat pictures are distinguished from scenes, and what is asked for is looked for."""

import random
from dataclasses import replace

import numpy as np
import pytest

from training.evaluation.natural_prompts import ARBITRARY, NATURAL
from training.evaluation.natural_report import shows
from training.images import is_flat
from training.world.drawing import Painter
from training.world.scene_reader import Reader
from training.world.scenes import WIDE, SceneObject, World, sample_scenes
from training.world.sprites import stand_in_sprites
from training.world.vocabulary import OBJECTS


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(stand_in_sprites(), 128)


def test_there_are_a_hundred_natural_prompts_and_as_many_arbitrary_ones():
    assert len({prompt for prompt, _ in NATURAL}) == len(NATURAL) >= 100
    assert len(set(ARBITRARY)) == len(ARBITRARY) >= 100
    assert {name for _, wanted in NATURAL for name in wanted} <= OBJECTS.keys()


@pytest.mark.parametrize("seed", range(4))
def test_a_ground_and_a_sky_without_a_thing_are_flat(seed: int):
    rng = random.Random(seed)
    horizon = rng.randrange(20, 120)
    rows = np.linspace([rng.random() * 255 for _ in range(3)], [rng.random() * 255 for _ in range(3)], 128)
    rows[horizon:] = [rng.random() * 255 for _ in range(3)]
    noise = np.random.default_rng(seed).normal(0, 4, (128, 128, 3))
    picture = (rows[:, None] + noise).clip(0, 255).astype(np.uint8)

    assert is_flat(picture)
    assert is_flat(np.full((128, 128, 3), 90, np.uint8))


def test_scenes_are_not_flat(painter: Painter):
    scenes = sample_scenes(300, seed=3, world=WIDE)

    assert not [scene for scene in scenes if is_flat(painter.paint(scene))]


def test_one_thing_on_a_plain_ground_is_not_flat(painter: Painter):
    layer = painter.object_layer(SceneObject("house", "red", "small", "center"), "day")
    alpha = layer[..., 3:] / 255
    picture = (layer[..., :3] * alpha + (1 - alpha) * (200, 190, 90)).astype(np.uint8)

    assert not is_flat(picture)


def test_objects_that_are_asked_for_are_looked_for_and_counted(painter: Painter):
    world = World(("house", "cat", "balloon"), num_variants=1)
    reader = Reader(painter, world)
    scene = next(s for s in sample_scenes(100, seed=3, world=world) if len(s.objects) == 2)
    cats = replace(scene, objects=tuple(replace(o, name="cat", colour=None) for o in scene.objects))
    picture = painter.paint(cats)

    assert shows(reader, picture, ("cat", "cat")) == (True, True)
    assert shows(reader, picture, ("cat",)) == (True, False)
    assert shows(reader, picture, ("cat", "house"))[0] is False
