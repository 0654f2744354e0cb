"""Asking an oracle: a published package in another environment computes, we convert its checkpoint and compare."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.weights.model_folder import GoldenDifference
from tests.parity.__main__ import python_of

ORACLES = Path(__file__).parent / "oracles"


def ask(oracle: str, environment: str, folder: Path, cases: Mapping[str, Any]) -> Path:
    """Runs an oracle once for all cases; it leaves a folder for each case in `folder`."""
    if not python_of(environment).exists():
        pytest.skip("`make parity` makes the oracles' environments and runs this")
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [str(python_of(environment)), str(ORACLES / f"{oracle}.py"), str(folder)]
    # Nothing may look for a hub, and an oracle's numbers should not depend on the number of threads.
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    assert done.returncode == 0, f"{oracle} failed:\n{done.stderr[-4000:]}"
    return folder


def beyond_tolerance(differences: list[GoldenDifference]) -> list[GoldenDifference]:
    """What a comparison must be free of; a comparison of nothing proves nothing."""
    assert differences
    return [difference for difference in differences if not difference.ok]
