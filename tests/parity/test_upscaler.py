"""Our SwinIR beside spandrel's, on random checkpoints of every published layout."""

from pathlib import Path

import pytest

from services.upscaler.conversion.convert import convert
from services.upscaler.conversion.verify import compare
from tests.parity.conftest import ask, beyond_tolerance

pytestmark = pytest.mark.parity

SMALL = {"window_size": 8, "mlp_ratio": 2, "embed_dim": 24, "depths": [2, 3], "num_heads": [2, 3]}
CASES = {
    "real_l_x4": {"upscale": 4, "upsampler": "nearest+conv", "resi_connection": "3conv"},
    "real_m_x4": {"upscale": 4, "upsampler": "nearest+conv", "resi_connection": "1conv"},
    "classical_x2": {"upscale": 2, "upsampler": "pixelshuffle", "resi_connection": "1conv"},
    "classical_x3": {"upscale": 3, "upsampler": "pixelshuffle", "resi_connection": "3conv"},
    "classical_x4": {"upscale": 4, "upsampler": "pixelshuffle", "resi_connection": "1conv"},
    "lightweight_x2": {"upscale": 2, "upsampler": "pixelshuffledirect", "resi_connection": "1conv"},
    "lightweight_x3": {"upscale": 3, "upsampler": "pixelshuffledirect", "resi_connection": "1conv"},
    "lightweight_x4": {"upscale": 4, "upsampler": "pixelshuffledirect", "resi_connection": "1conv"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = {name: SMALL | settings for name, settings in CASES.items()}
    return ask("spandrel_oracle", "torch", tmp_path_factory.mktemp("spandrel"), cases)


@pytest.mark.parametrize("case", CASES)
def test_swinir_computes_what_spandrel_does(case: str, answers: Path, tmp_path: Path) -> None:
    convert(answers / case / "network.pth", tmp_path / "swinir", "swinir")
    differences = compare(tmp_path / "swinir", "swinir", answers / case / "vectors.safetensors")
    assert beyond_tolerance(differences) == []
