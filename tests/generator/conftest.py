import shutil
from pathlib import Path

import jax
import pytest

from services.generator.convert import convert

GOLDEN = Path(__file__).parent.parent / "golden" / "generator"
DALLES = ("mega_scan", "mini_scan", "mini_bias_ffn_lnscale")

jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Every golden checkpoint as a part of a model folder, by name."""
    root = tmp_path_factory.mktemp("converted")
    for name in (*DALLES, "vqgan_tiny"):
        convert(GOLDEN / name, root / name, "vqgan" if name == "vqgan_tiny" else "dalle")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def published(tmp_path):
    """Copies a golden checkpoint's published files to where a test may damage them."""

    def copy(name):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        return tmp_path / name

    return copy
