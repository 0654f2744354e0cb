"""Candidates that the generator drew: kept as they were drawn, and CLIP taught to choose the best of them."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.pytorch.clip import Clip
from training.images import to_tensor
from training.refiner import candidate_pool, train_clip, train_wordpieces
from training.refiner.candidate_pool import NUM_CANDIDATES, CandidatePool
from training.world.drawing import Painter
from training.world.scene_reader import Reader, Reading
from training.world.scenes import NARROW, SceneObject, sample_scenes
from training.world.sprites import stand_in_sprites


def painted_pool(count: int) -> CandidatePool:
    """Stands for what a generator draws: the scene itself first, then near misses."""
    painter, rng = Painter(stand_in_sprites(), size=32), random.Random(1)
    wanted = sample_scenes(count, 1)
    shown = [
        [scene, *(train_clip.near_miss(scene, rng, NARROW) for _ in range(NUM_CANDIDATES - 1))]
        for scene in wanted
    ]
    pictures = [((to_tensor([painter.paint(s) for s in row]) + 1) * 127.5).byte() for row in shown]
    fits = torch.zeros(count, NUM_CANDIDATES)
    fits[:, 0] = 2.1
    return CandidatePool(wanted, torch.stack(pictures), shown, fits)


def small_clip() -> tuple[train_clip.ProbedClip, train_clip.Tokenizer]:
    merges = train_wordpieces.learn_merges(200)
    config = train_clip.make_config(len(train_wordpieces.clip_vocab(merges)))
    small = replace(config, image_size=32, vision_patch_size=8, vision_layers=1)
    torch.manual_seed(0)
    return train_clip.ProbedClip(Clip(small)), train_clip.make_tokenizer(merges)


@pytest.mark.matrix
def test_a_pool_is_kept_as_the_built_in_generator_drew_it(tmp_path: Path):
    painter, path = Painter(stand_in_sprites()), tmp_path / "candidates.pt"

    drawn = candidate_pool.cached_pool(path, painter, 1)
    written_at = path.stat().st_mtime_ns
    kept = candidate_pool.cached_pool(path, painter, 1)

    assert drawn is not None
    assert kept is not None
    assert path.stat().st_mtime_ns == written_at
    assert kept.wanted == drawn.wanted
    assert kept.shown == drawn.shown
    assert torch.equal(kept.pictures, drawn.pictures)
    assert torch.equal(kept.fits, drawn.fits)
    assert drawn.pictures.shape == (1, NUM_CANDIDATES, 3, 128, 128)
    assert len({picture.numpy().tobytes() for picture in drawn.pictures[0]}) == NUM_CANDIDATES


def test_without_a_generator_there_are_no_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(candidate_pool, "model_folder", lambda stage: tmp_path / stage)

    assert candidate_pool.cached_pool(tmp_path / "candidates.pt", Painter(stand_in_sprites()), 1) is None


def test_what_a_prompt_names_fits_better_the_more_of_it_is_seen():
    scene = replace(sample_scenes(1, 1)[0], objects=(SceneObject("car", "red", "medium", "center"),))
    reader = Reader(Painter(stand_in_sprites()), NARROW)

    def fit(*objects: SceneObject) -> float:
        return candidate_pool.fit(reader, scene, Reading(replace(scene, objects=objects), 0.0))

    car = scene.objects[0]
    right, twice = fit(car), fit(car, replace(car, slot="left"))
    recoloured, other = fit(replace(car, colour="blue")), fit(replace(car, name="apple"))
    assert right > twice > recoloured > other > fit()


def test_nothing_is_lost_where_the_best_of_a_prompts_own_candidates_stands_out():
    fits = torch.tensor([[2.1, *[0.0] * 7], [2.1, 2.1, *[0.0] * 6]])
    logits = torch.zeros(2, 16)
    logits[0, 0] = logits[1, 8] = logits[1, 9] = 100.0

    assert train_clip.ranking_loss(logits, fits) == pytest.approx(0, abs=1e-4)
    assert train_clip.ranking_loss(logits.roll(1, 1), fits) > 40


def test_clip_takes_steps_on_candidates_and_gets_better_at_choosing():
    probed, tokenizer = small_clip()
    ranking = train_clip.Ranking(painted_pool(train_clip.NUM_PROMPTS_KEPT + 2), tokenizer)
    optimizer = torch.optim.AdamW(probed.parameters(), lr=2e-3)
    lost = []
    for _ in range(12):
        losses = ranking.losses_of_step(probed, 2 * NUM_CANDIDATES, 0)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        lost.append(float(losses["ranking"].detach()))

    assert np.mean(lost[-3:]) < 0.8 * np.mean(lost[:3])


def test_a_clip_that_has_learned_nothing_gains_as_little_as_chance():
    probed, tokenizer = small_clip()
    pool = painted_pool(train_clip.NUM_PROMPTS_KEPT + 1)

    gain = train_clip.Ranking(pool, tokenizer).measure(probed.clip)["ranking_gain"]

    # All but the first candidate fit not at all: never choosing it is the worst that can be.
    assert -1 / 7 - 1e-4 <= gain < 0.4
