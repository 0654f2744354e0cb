"""Where and in which precision the upscaler computes: decided here once and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from services.errors import DeviceOutOfMemory, ModelError
from services.upscaler.swinir import SwinIR

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_device(name: str = "auto") -> torch.device:
    """ "auto" is the first CUDA device, else the CPU; raises ModelError when a device is asked for that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelError(f"device: expected auto, cpu, cuda or cuda:N, got '{name}'") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device: expected auto, cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device '{name}' is not there: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


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


@contextmanager
def out_of_memory_is_the_jobs() -> Iterator[None]:
    """Turns what torch raises when a device is full into the error that callers know."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise DeviceOutOfMemory(f"the device has no memory for this tile: {error}") from error
        raise
