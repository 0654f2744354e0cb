"""Random weights in the shapes of the published SwinIRs, to measure speed and memory before gigabytes are fetched.

The published shapes are float16 files, written tensor by tensor.
"""

import json
import struct
from pathlib import Path

import torch

from services.errors import ModelError
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.weights.model_folder import write_atomically

CONFIGS = {
    # 003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN
    "real-l": SwinIRConfig(4, "nearest+conv", 240, (6,) * 9, (8,) * 9, resi_connection="3conv"),
    # 003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN
    "real-m": SwinIRConfig(4, "nearest+conv", 180, (6,) * 6, (6,) * 6),
    # 001_classicalSR_DF2K_s64w8_SwinIR-M_x4
    "classical": SwinIRConfig(4, "pixelshuffle", 180, (6,) * 6, (6,) * 6),
    # 002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4
    "lightweight": SwinIRConfig(4, "pixelshuffledirect", 60, (6,) * 4, (6,) * 4),
    "tiny": SwinIRConfig(4, "pixelshuffledirect", 24, (2, 2), (2, 2)),
}
NAMES = tuple(CONFIGS)


def write_random(name: str, folder: Path, *, seed: int = 0) -> None:
    """Writes FOLDER/swinir; the same seed gives the same bytes."""
    if name not in CONFIGS:
        raise ModelError(f"no upscaler is called '{name}': expected one of {', '.join(NAMES)}")
    config = CONFIGS[name]
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in SwinIR(config).state_dict().items()}
    part = folder / "swinir"
    write_atomically(part / "config.json", config.to_json().encode())
    header, offset = {}, 0
    for key, shape in shapes.items():
        num_bytes = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": (offset, offset + num_bytes)}
        offset += num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = torch.Generator("cpu").manual_seed(seed)
    with (part / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            file.write(_draw(key, shape, rng).to(torch.float16).numpy().tobytes())


def _draw(key: str, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Weights that keep the size of what passes through them, biases near nothing, norms near doing nothing."""
    noise = torch.randn(shape, generator=rng)
    if len(shape) == 1:
        return (1.0 if "norm" in key and key.endswith("weight") else 0.0) + 0.02 * noise
    if key.endswith("relative_position_bias_table"):
        return 0.5 * noise
    return 0.5 * noise / noise[0].numel() ** 0.5
