"""Runs one coroutine until it ends or the user stops it; its own `finally` blocks clean up in every case."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

import click


def run_in_foreground(main: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C and SIGTERM cancel `main`, a second one its cleaning up too; leaves with 130 or 143, as a shell has it.

    Both are handled even where they are ignored, as SIGINT is in what a script starts in the background.
    """
    received: list[signal.Signals] = []

    async def cancellable() -> None:
        task = asyncio.ensure_future(main)

        def stop(number: signal.Signals) -> None:
            received.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        await task

    try:
        asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not received:
            raise
        raise click.exceptions.Exit(128 + received[0]) from None
