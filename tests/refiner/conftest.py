from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file


class Golden:
    """Recorded weights and arrays; see tests/golden/refiner/README.md."""

    folder = Path(__file__).parent.parent / "golden" / "refiner"

    def arrays(self, name):
        with np.load(self.folder / f"{name}.npz") as arrays:
            return {
                key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind != "U"
            }

    def weights(self, name):
        return {key: value.float() for key, value in load_file(self.folder / f"{name}.safetensors").items()}


@pytest.fixture(scope="session")
def golden():
    return Golden()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
