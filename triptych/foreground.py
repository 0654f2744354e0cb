"""Runs one coroutine until it ends or the user stops it; its own `finally` blocks clean up in every case."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import click

# 128 + SIGTERM, as a shell has it.
TERMINATED = 143


def run_in_foreground(main: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C and SIGTERM cancel `main`. Ctrl-C leaves as KeyboardInterrupt, SIGTERM as click's Exit with 143."""
    was_terminated = False

    async def cancellable() -> None:
        task = asyncio.ensure_future(main)

        def terminate() -> None:
            nonlocal was_terminated
            was_terminated = True
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        await task

    try:
        asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not was_terminated:
            raise
        raise click.exceptions.Exit(TERMINATED) from None
