"""The attribute measure: right on real held-out pictures, at chance on others'."""

import numpy as np
import pytest

from training.world.drawing import Painter
from training.world.scene_reader import Reader, score
from training.world.scenes import World, sample_scenes
from training.world.sprites import stand_in_sprites

# Few objects, so that the templates are made in a second.
WORLD = World(("house", "cat", "balloon"), num_variants=1)


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(stand_in_sprites(), 128)


@pytest.fixture(scope="module")
def reader(painter: Painter) -> Reader:
    return Reader(painter, WORLD)


def test_real_held_out_pictures_are_read_rightly(painter: Painter, reader: Reader):
    scenes = sample_scenes(12, seed=4, world=WORLD, held_out=True)

    found = score(reader, scenes, reader.read(np.stack([painter.paint(scene) for scene in scenes])))

    assert found == dict.fromkeys(found, 1.0)


def test_readings_of_other_pictures_score_worse(painter: Painter, reader: Reader):
    scenes = sample_scenes(12, seed=4, world=WORLD)
    readings = reader.read(np.stack([painter.paint(scene) for scene in scenes]))

    found = score(reader, scenes, readings[1:] + readings[:1])

    assert found["place"] < 0.5
    assert found["name"] < 0.9


def test_only_what_the_caption_mentions_is_asked_for(painter: Painter, reader: Reader):
    scenes = sample_scenes(4, seed=4, world=WORLD)
    readings = reader.read(np.stack([painter.paint(scene) for scene in scenes]))

    found = score(reader, scenes, readings, [frozenset({"place"})] * 4)

    assert "place" in found
    assert "weather" not in found
