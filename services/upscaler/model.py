"""Loads the `swinir` part of a model folder and places it on a device."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from services.errors import ModelError
from services.pytorch.device import find_dtype, name_of
from services.pytorch.parts import read_tensors
from services.pytorch.winograd import Chooser
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.weights.model_folder import check_names, read_config

# What the published code saves beside the weights, and computes: files hold them or not.
BUFFERS = ("attn_mask", "relative_position_index")
# Of the picture that a choice of the precision is measured with.
MEASURED_SIDE_PX = 64


def load_swinir(part_folder: Path) -> SwinIR:
    """Reads config.json and model.safetensors; float32 whatever the file has. Raises ModelError."""
    config = SwinIRConfig.from_json(read_config(part_folder))
    return fill(config, read_tensors(part_folder / "model.safetensors", "SwinIR"), str(part_folder))


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


def place(
    network: SwinIR, device: torch.device, dtype: str = "float32", choices: Chooser | None = None
) -> SwinIR:
    """Makes a network ready to serve: moved, in eval mode, without gradients, in the memory layout of its inside.

    Half precision is for the matrix products and convolutions alone: norms and the residual stream stay float32. A SwinIR
    that is float16 throughout gives black pictures, since its stream overflows. Small networks may be slower in half
    precision: `choices` measures it, and then takes float32.
    """
    found = find_dtype(dtype, device)
    network = network.eval().requires_grad_(requires_grad=False).to(device)
    network.fold_biases()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    if found != torch.float32 and choices is not None:
        found = _faster_dtype(network, found, choices)
    return _multiply_in(network, found)


def _multiply_in(network: SwinIR, dtype: torch.dtype) -> SwinIR:
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return network


def _faster_dtype(network: SwinIR, half: torch.dtype, choices: Chooser) -> torch.dtype:
    config = network.config
    rough = _multiply_in(copy.deepcopy(network), half)
    picture = torch.zeros(1, 3, MEASURED_SIDE_PX, MEASURED_SIDE_PX)
    size = f"SwinIR of {config.embed_dim} channels and {sum(config.depths)} blocks, {MEASURED_SIDE_PX} px"
    with torch.inference_mode():
        ways = {name_of(half): lambda: rough(picture), "float32": lambda: network(picture)}
        return find_dtype(choices.choose(f"{size}, {name_of(half)} or float32", ways))
