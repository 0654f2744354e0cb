from dataclasses import replace

import numpy as np
import pytest

from services.errors import ModelError
from services.pytorch.clip import Clip, ClipConfig
from services.refiner.clip_scores import LEAD_OF_ONE, prompt_for_two, rank


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, np.uint8) for shape in [(32, 32, 3), (50, 40, 3), (9, 100, 3)] * 4]


def test_each_picture_gets_a_cosine(model, pictures):
    scores = rank(model, "a red house", pictures)
    assert len(scores) == len(pictures)
    assert all(-1 <= score <= 1 for score in scores)


def test_a_score_does_not_depend_on_the_other_pictures(model, pictures):
    together = rank(model, "a red house", pictures)
    assert rank(model, "a red house", pictures[10:11]) == pytest.approx(together[10:11], abs=1e-5)


def test_another_prompt_gives_another_score(model, pictures):
    assert rank(model, "a red house", pictures) != pytest.approx(rank(model, "two cats", pictures), abs=1e-3)


def test_a_picture_is_ranked_by_its_middle(model):
    long = np.random.default_rng(1).integers(0, 256, (32, 2048, 3), np.uint8)
    middle = np.ascontiguousarray(long[:, 1008:1040])
    assert rank(model, "a red house", [long]) == pytest.approx(rank(model, "a red house", [middle]), abs=1e-5)


def test_a_picture_of_one_row_is_not_enlarged_as_a_whole(model):
    [score] = rank(model, "a red house", [np.zeros((1, 8192, 3), np.uint8)])
    assert -1 <= score <= 1


def test_no_pictures_have_no_scores(model):
    assert rank(model, "a red house", []) == []


def test_a_clip_without_an_image_tower_cannot_rank(model, pictures):
    text_only = Clip(ClipConfig(**{**vars(model.clip.config), "vision_layers": 0}))
    with pytest.raises(ModelError, match="no image tower"):
        rank(type(model)(**{**vars(model), "clip": text_only}), "a red house", pictures)


@pytest.mark.parametrize(
    ("prompt", "other"),
    [
        ("a small cat in the middle in a meadow", "two small cat in the middle in a meadow"),
        ("An apple", "two apple"),
        ("a photo of a dog", "a photo of two dog"),
        ("my cat", None),
        ("two cats in a meadow", None),
        ("a dog and a cat", None),
        ("a dog, a cat", None),
    ],
)
def test_one_thing_is_compared_with_two(prompt: str, other: str | None):
    assert prompt_for_two(prompt) == other


def test_a_clip_that_compares_counts_scores_a_picture_of_two_lower(model, pictures):
    config = replace(model.clip.config, compares_counts=True)
    clip = Clip(config).eval()
    clip.load_state_dict(model.clip.state_dict())
    comparing = type(model)(**{**vars(model), "clip": clip})

    one, two = (np.array(rank(model, prompt, pictures)) for prompt in ("a house", "two house"))

    expected = np.maximum(-1, one - np.maximum(0, LEAD_OF_ONE - (one - two)))
    assert (expected < one).any()
    np.testing.assert_allclose(rank(comparing, "a house", pictures), expected, atol=1e-5)
    assert rank(comparing, "two cats", pictures) == pytest.approx(rank(model, "two cats", pictures), abs=1e-5)
