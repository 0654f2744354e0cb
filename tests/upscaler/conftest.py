"""Small SwinIRs: random ones that are built in a moment, and the golden ones with their vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from services.serving.stage_service import COMMON_DEFAULTS, COMMON_RANGES
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.upscaler.service import DEFAULTS, ranges
from services.upscaler.stepper import UpscalerStepper
from triptych.v1.stage_pb2 import ModelInfo

GOLDEN = Path(__file__).parents[1] / "golden" / "upscaler"
GOLDEN_NAMES = ("nearest3conv_x4", "pixelshuffle_x4", "pixelshuffledirect_x4")
BUFFERS = ("attn_mask", "relative_position_index")


def random_swinir(seed: int = 0, **settings: Any) -> SwinIR:
    """One group of two blocks unless `settings` say otherwise; weights large enough that every path matters."""
    config = {
        "upscale": 4,
        "upsampler": "pixelshuffledirect",
        "embed_dim": 12,
        "depths": (2,),
        "num_heads": (2,),
        "window_size": 4,
    }
    network = SwinIR(SwinIRConfig(**(config | settings)))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.8 / parameter[0].numel() ** 0.5
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + spread * torch.randn(parameter.shape, generator=rng))
    return network.eval()


def small_info(stepper: UpscalerStepper) -> ModelInfo:
    return ModelInfo(
        name="small",
        scale=4,
        defaults={**DEFAULTS, **COMMON_DEFAULTS},
        ranges={**ranges(stepper), **COMMON_RANGES},
    )


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Golden:
    """A golden network with its cases."""

    def __init__(self, name: str) -> None:
        facts = json.loads((GOLDEN / "golden.json").read_text())
        self.name = name
        self.config = SwinIRConfig.from_json(facts["configs"][name]["config"])
        self.kinds = {case["case"]: case["kind"] for case in facts["cases"] if case["config"] == name}
        self.weights_file = GOLDEN / f"{name}.safetensors"
        self.vectors_file = GOLDEN / f"{name}.vectors.safetensors"
        self.vectors = load_file(self.vectors_file)

    def network(self) -> SwinIR:
        network = SwinIR(self.config)
        weights = load_file(self.weights_file)
        network.load_state_dict({name: t for name, t in weights.items() if not name.endswith(BUFFERS)})
        return network.eval()


@pytest.fixture(scope="session", params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
