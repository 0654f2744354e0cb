"""What ranking, refining and enlarging add: tables with a row for each way, read from the built-in models."""

import pytest

from services.generator.dalle.model import load_model as load_generator
from services.refiner.model import load_model as load_refiner
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from training.evaluation import pipeline_report
from training.export import load_exported, model_folder
from training.world.drawing import Painter
from training.world.scene_reader import Reader
from training.world.scenes import World
from training.world.sprites import stand_in_sprites

# The built-in models at full size.
pytestmark = pytest.mark.matrix

WORLD = World(("house", "cat", "balloon"), num_variants=1)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    sprites = stand_in_sprites()
    painter = Painter(sprites, 128)
    return pipeline_report.report(
        load_generator(model_folder("generator")),
        load_refiner(model_folder("refiner")),
        load_exported("upscaler", "swinir", SwinIR, SwinIRConfig),
        Reader(painter, WORLD),
        sprites,
        WORLD,
        num_prompts=1,
        seed=3,
        skip_ratios=[0.76],
        sheet=tmp_path_factory.mktemp("sheet") / "refined.png",
        num_enlarged=2,
    )


def _cells(report: str, row: str) -> list[float]:
    line = next(line for line in report.splitlines() if line.startswith(f"| {row} |"))
    return [float(cell.strip().removesuffix(" dB")) for cell in line.split("|")[2:-1] if cell.strip()]


def test_no_ranking_beats_choosing_by_the_measure_itself(report: str):
    # Names and colours decide the choice; the last column is the count.
    by_clip, by_measure = _cells(report, "the best by CLIP"), _cells(report, "the best by the measure")

    assert by_measure[-2] >= by_clip[-2]


def test_variations_of_a_picture_differ_from_each_other(report: str):
    assert _cells(report, "skip 0.76")[-1] > 1


def test_swinir_gains_over_lanczos_on_held_out_pictures(report: str):
    assert _cells(report, "sharp over lanczos")[0] > 1
