"""Devices, precisions and out-of-memory errors of every PyTorch stage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from services.device_memory import ModelSize, check_free
from services.errors import DeviceOutOfMemory, ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What `--dtype` takes.
DTYPE_NAMES = ("auto", *DTYPES)


def find_device(name: str = "auto") -> torch.device:
    """ "auto" is the first CUDA device, else the CPU; raises ModelError for one that is not there.

    On a CUDA device float32 is float32 from here on: cuDNN would convolve with 10 bits of mantissa (TF32).
    """
    device = _find_device(name)
    if device.type == "cuda":
        # torch before 2.9 has another name for it.
        if (convolutions := getattr(torch.backends.cudnn, "conv", None)) is not None:
            convolutions.fp32_precision = "ieee"
        else:
            torch.backends.cudnn.allow_tf32 = False
    return device


def _find_device(name: str) -> torch.device:
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


def find_dtype(
    name: str = "float32",
    device: torch.device = torch.device("cpu"),  # noqa: B008 - an immutable value
) -> torch.dtype:
    """ "auto" is float32 on a CPU, else bfloat16, or float16 on a GPU without it. Raises ModelError for unknown names."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        # Emulation, which a T4 has, is slower than float32.
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if name not in DTYPES:
        raise ModelError(f"dtype: expected one of {', '.join(DTYPE_NAMES)}, got '{name}'")
    return DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    """As `--dtype` and ModelInfo have it."""
    return str(dtype).removeprefix("torch.")


def check_memory(who: str, size: ModelSize, num_slots: int, device_name: str, dtype_name: str) -> None:
    """Raises DeviceOutOfMemory, before anything is loaded, where a GPU has no room for a model."""
    device = find_device(device_name)
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    dtype = name_of(find_dtype(dtype_name, device))
    check_free(who, size, dtype, num_slots, device=str(device), free_bytes=free, total_bytes=total)


def is_faster_with_winograd(device: torch.device) -> bool:
    """A GPU's libraries choose for themselves."""
    return device.type == "cpu"


def oom_as_job_error(
    what: str = "this picture", remedy: str = "use fewer slots"
) -> AbstractContextManager[None]:
    """Raises DeviceOutOfMemory in place of what torch raises when a device is full."""
    return _translate_out_of_memory(what, remedy)


def oom_as_model_error(name: str) -> AbstractContextManager[None]:
    """The same for a model that is being loaded."""
    return _translate_out_of_memory(f"the model {name}", "bfloat16 takes half of float32's")


@contextmanager
def _translate_out_of_memory(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            # What is kept for later lies in pieces that were too small, and other stages may need it. Nothing on a CPU.
            torch.cuda.empty_cache()
            raise DeviceOutOfMemory(f"the device has no memory for {what}: {error}; {remedy}") from error
        raise
