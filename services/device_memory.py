"""GPU memory of a model: computed from its numbers of weights, not measured on a GPU.

Weights, what a step of eight slots needs beside them, and what a process with a CUDA context takes for itself.
"""

from dataclasses import dataclass

from services.errors import DeviceOutOfMemory
from services.families import Family

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A CUDA context with the kernels and workspaces of its libraries: an estimate.
CONTEXT_BYTES = 0.6e9
NUM_SLOTS = 8


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a model follows from."""

    family: Family
    num_params: float
    # Keys and values of one picture.
    cache_numbers: float = 0

    def num_bytes(self, dtype: str, num_slots: int = NUM_SLOTS) -> float:
        numbers = self.num_params + self.family.working_numbers + num_slots * self.cache_numbers
        return numbers * ITEMSIZES[dtype] + CONTEXT_BYTES


def check_free(
    who: str,
    size: ModelSize,
    dtype: str,
    num_slots: int,
    *,
    device: str,
    free_bytes: float,
    total_bytes: float,
) -> None:
    """Raises DeviceOutOfMemory when the device has no room for the model.

    `who` is the stage and the model. A CUDA context that is there already is counted again: it is small.
    """
    needed = size.num_bytes(dtype, num_slots)
    if needed <= free_bytes:
        return
    half = ""
    if dtype == "float32":
        half = f", with --dtype float16 {size.num_bytes('float16', num_slots) / 1e9:.1f} GB"
    raise DeviceOutOfMemory(
        f"{who} needs {needed / 1e9:.1f} GB on {device} in {dtype} with {num_slots} slots (computed){half}, and "
        f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB are free; stop what else runs there, use fewer slots, or "
        "give the stage a GPU of its own"
    )
