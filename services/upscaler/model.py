"""Loads the `swinir` part of a model folder and places it on a device."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from services.errors import ModelError
from services.pytorch.device import DTYPES
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.weights.model_folder import check_names, read_config

# What the published code saves beside the weights, and computes: files hold them or not.
BUFFERS = ("attn_mask", "relative_position_index")


def load_swinir(part_folder: Path) -> SwinIR:
    """Reads config.json and model.safetensors; float32 whatever the file has. Raises ModelError."""
    config = SwinIRConfig.from_json(read_config(part_folder))
    return fill(config, read_safetensors(part_folder / "model.safetensors"), str(part_folder))


def fill(config: SwinIRConfig, weights: dict[str, Tensor], where: str) -> SwinIR:
    """A network with these weights, each name used exactly once; raises ModelError."""
    check_names(where, shapes_of(config), {name: tuple(t.shape) for name, t in weights.items()})
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ModelError(f"{where}: {name}: expected floating-point numbers, got {tensor.dtype}")
    network = SwinIR(config)
    network.load_state_dict({name: t.float() for name, t in weights.items()})
    return network


def shapes_of(config: SwinIRConfig) -> dict[str, tuple[int, ...]]:
    """Every name in a file of these weights, with its shape."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in SwinIR(config).state_dict().items()}


def place(network: SwinIR, device: torch.device, dtype: str = "float32") -> SwinIR:
    """Makes a network ready to serve: moved, in eval mode, without gradients, in the memory layout of its inside.

    bfloat16 is for the matrix products and convolutions alone: norms and the residual stream stay float32.
    """
    if dtype not in DTYPES:
        # The pictures of a SwinIR in float16 are black: its activations overflow.
        raise ModelError(f"dtype: expected one of {', '.join(DTYPES)}, got '{dtype}'")
    network = network.eval().requires_grad_(requires_grad=False).to(device)
    network.fold_biases()
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(DTYPES[dtype])
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: expected weights of a SwinIR") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file: {error}; fetch or convert it again"
        ) from None
