"""Work that goes on beside a test."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def underway(work: Awaitable[Result]) -> asyncio.Task[Result]:
    """The task of that work, once it has come to where it first waits, or is done."""
    begun = asyncio.Event()

    async def run() -> Result:
        # A task that waits for this goes on when the work next gives way, and not before.
        begun.set()
        return await work

    task = asyncio.create_task(run())
    await begun.wait()
    return task
