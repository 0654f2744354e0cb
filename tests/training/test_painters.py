"""Scenes that several processes draw are those that one would draw."""

import numpy as np

from training.world.drawing import Painter
from training.world.painters import Painters
from training.world.scenes import in_every_slot, sample_scenes
from training.world.sprites import stand_in_sprites


def test_other_processes_draw_the_same_pictures():
    painter = Painter(stand_in_sprites(), 32)
    scenes = sample_scenes(3, seed=1)
    masked = [in_every_slot(scene) for scene in scenes]

    with Painters(painter) as alone, Painters(painter, 2, stand_in_sprites) as two:
        for ours, theirs in zip(alone.paint(scenes, masked), two.paint(scenes, masked), strict=True):
            np.testing.assert_array_equal(ours, theirs)
