"""Decodes callers' pictures beside the event loop, two at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

Decoded = TypeVar("Decoded")

# Decoding 25 megapixels takes 280 MB: more at once would need more memory, and on a few cores be no faster.
MAX_AT_ONCE = 2
_THREADS = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="decode")


async def decode(read: Callable[..., Decoded], *arguments: Any) -> Decoded:
    """What `read` makes of a picture's file; it may raise InvalidRequest."""
    loop, context = asyncio.get_running_loop(), copy_context()
    return await loop.run_in_executor(_THREADS, partial(context.run, read, *arguments))
