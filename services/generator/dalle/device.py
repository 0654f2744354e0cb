"""The device that JAX computes on, the threads it may use, and where compiled programs are kept between runs."""

import ctypes
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jax

from services.errors import DeviceOutOfMemory, ModelError
from services.weights.cache import cache_home

log = logging.getLogger(__name__)
# It reports every kind of accelerator that is not there.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

CACHE_VARIABLE = "TRIPTYCH_JAX_CACHE"
# Known once the device is set up.
_num_threads: int | None = None


def set_up_device(name: str, *, threads: int | None = None) -> str:
    """Chooses "cpu", "cuda" or "auto" and returns the device's name; before anything else of JAX is used.

    `threads` holds on a CPU. Raises ModelError when the device is not there.
    """
    global _num_threads
    # JAX would reserve three quarters of a GPU's memory at its first use and leave none for the stages beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cache = Path(os.environ.get(CACHE_VARIABLE) or _user_cache_folder() / "triptych" / "jax")
    settings = {
        "jax_platforms": None if name == "auto" else name,
        "jax_compilation_cache_dir": str(cache),
        # Small programs too: what counts is the first picture after a start.
        "jax_persistent_cache_min_compile_time_secs": 0.01,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for setting, value in settings.items():
        jax.config.update(setting, value)  # type: ignore[no-untyped-call] # JAX has no annotation there
    try:
        with limit_processors(threads):
            device = jax.devices()[0]
            _num_threads = num_processors()
    except RuntimeError as error:
        raise ModelError(f"no device '{name}' for JAX: {error}; expected cpu, cuda or auto") from None
    if device.platform != "cpu":
        # Else a GPU multiplies float32 with 10 bits of mantissa (TF32). It has no effect on float16 and bfloat16.
        jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]
    log.info("JAX %s on %s, compiled programs in %s", jax.__version__, device, cache)
    return "cpu" if device.platform == "cpu" else f"cuda:{device.id}"


def choose_dtype(name: str) -> str:
    """What "auto" is on the device that is set up: bfloat16, float16 on a GPU before Ampere, float32 on a CPU."""
    if name != "auto":
        return name
    device = jax.devices()[0]
    if device.platform == "cpu":
        return "float32"
    # CUDA devices have it, others multiply bfloat16.
    capability = getattr(device, "compute_capability", "8.0")
    return "float16" if float(capability) < 8 else "bfloat16"


def gpu_memory() -> tuple[float, float] | None:
    """Free and all bytes of the GPU that is set up; None on a CPU, and where NVIDIA's tool does not say."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        return None
    # JAX knows only what it has taken itself.
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    name = visible[device.id] if device.id < len(visible) else str(device.id)
    query = [
        "nvidia-smi",
        "--query-gpu=memory.free,memory.total",
        "--format=csv,noheader,nounits",
        f"--id={name}",
    ]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout  # noqa: S603 - fixed words and a number
        free, total = (float(number) * 2**20 for number in answer.split(","))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("free memory of the GPU is unknown: %s", error)
        return None
    return free, total


def num_processors() -> int:
    """How many this process may use; once the device is set up, how many JAX uses."""
    if _num_threads is not None:
        return _num_threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def limit_processors(threads: int | None) -> Iterator[None]:
    """JAX has no setting for its threads: its CPU client makes one for each processor that it may use when it is made.

    Afterwards all may run anywhere again, or the services of one machine would crowd on its first processors.
    """
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:threads])
    try:
        yield
    finally:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), allowed)


def _user_cache_folder() -> Path:
    return cache_home()


def oom_as_job_error() -> AbstractContextManager[None]:
    """Turns what JAX raises when a device is full into the error that callers know."""
    return _out_of_memory_explained("this picture", "use fewer slots")


def oom_as_model_error(name: str) -> AbstractContextManager[None]:
    """The same for a model that is being loaded."""
    return _out_of_memory_explained(f"the model {name}", "bfloat16 and float16 take half of float32's")


@contextmanager
def _out_of_memory_explained(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise DeviceOutOfMemory(f"the device has no memory for {what}: {error}; {remedy}") from error
        raise


# As `malloc.h` numbers them, and what glibc has come to once it has seen an array of 32 MB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USUAL_MMAP_THRESHOLD = 32 * 2**20


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """While it holds, an array that is freed is the system's again at once, where the C library is glibc.

    Else those below 32 MB lie in a heap, and what loading frees between others stays the process's: of a model's weights as
    much as a second copy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL_MMAP_THRESHOLD)
