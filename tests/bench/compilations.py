"""Counts what JAX compiles: a program that is compiled while serving makes everybody wait for seconds."""

import jax.monitoring

# Recorded each time that XLA compiles, or takes a program from the persistent cache.
EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts from its creation on; JAX has no way to end a listener."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == EVENT
