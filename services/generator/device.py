"""The device that JAX computes on, the threads it may use, and where compiled programs are kept between runs."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from services.errors import DeviceOutOfMemory, ModelError

log = logging.getLogger(__name__)
# It reports every kind of accelerator that is not there.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)

CACHE_VARIABLE = "TRIPTYCH_JAX_CACHE"


def set_up_device(name: str, *, threads: int | None = None) -> str:
    """Chooses "cpu", "cuda" or "auto" and returns the device's name; before anything else of JAX is used.

    `threads` holds on a CPU. Raises ModelError when the device is not there.
    """
    if threads is not None:
        # JAX has no setting for it; its CPU client asks the process how many cores it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    cache = Path(os.environ.get(CACHE_VARIABLE) or _user_cache_folder() / "triptych" / "jax")
    settings = {
        "jax_platforms": None if name == "auto" else name,
        "jax_compilation_cache_dir": str(cache),
        # Small programs too: what counts is the first picture after a start.
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for setting, value in settings.items():
        jax.config.update(setting, value)  # type: ignore[no-untyped-call] # JAX has no annotation there
    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        raise ModelError(f"no device '{name}' for JAX: {error}; expected cpu, cuda or auto") from None
    log.info("JAX %s on %s, compiled programs in %s", jax.__version__, device, cache)
    return "cpu" if device.platform == "cpu" else f"cuda:{device.id}"


def _user_cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@contextmanager
def out_of_memory_is_the_jobs() -> Iterator[None]:
    """Turns what JAX raises when a device is full into the error that callers know."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise DeviceOutOfMemory(
                f"the device has no memory for this picture: {error}; use fewer slots"
            ) from error
        raise
