"""Where a gateway keeps its runs and their pictures, as the command line names it."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from gateway.journal.journal import Journal, open_journal
from gateway.runs.retention import DAY_S, Keep, Retention
from gateway.store import open_store
from gateway.store.base import Store

NOWHERE = "none"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Places:
    """A journal's path or URL, or "none" for one that ends with the process; a store's, "" beside the journal."""

    journal: str = ""
    store: str = ""
    keep: Keep = Keep()


@asynccontextmanager
async def kept_at(places: Places) -> AsyncIterator[tuple[Journal, Store]]:
    """Opens both. Raises BadJournal or InvalidStore, which say what to do."""
    async with AsyncExitStack() as stack:
        folder = data_folder()
        if places.journal == NOWHERE:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="triptych-")))
        journal = places.journal if places.journal not in ("", NOWHERE) else str(folder / "journal.db")
        store = open_store(places.store or str(folder / "pictures"))
        stack.push_async_callback(store.close)
        await store.check()
        opened = await stack.enter_async_context(open_journal(journal, secrets.token_hex(8)))
        sweeping = asyncio.create_task(
            Retention(places.keep, opened, store).sweep_forever(), name="retention"
        )
        stack.callback(sweeping.cancel)
        yield opened, store


def data_folder() -> Path:
    """The user's own, where XDG has it."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "triptych"


class ByteSize(click.ParamType[int, str | int]):
    name = "BYTES"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number, unit = value[:-1], value[-1:].upper()
        if unit not in _UNITS:
            number, unit = value, ""
        if not number.isdecimal():
            self.fail(f"expected a number of bytes, such as 500M or 20G, got {value!r}", param, ctx)
        return int(number) * _UNITS[unit]


def keep_from(keep_days: float | None, keep_bytes: int | None) -> Keep:
    return Keep(None if keep_days is None else keep_days * DAY_S, keep_bytes)


def kept_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--journal, --store, --keep-days and --keep-bytes."""
    journal = click.option(
        "--journal",
        default="",
        metavar="PATH|URL|none",
        help="What keeps the runs: a SQLite file, or postgresql://... for several gateways; none: they end with the "
        "process.  [default: journal.db in ~/.local/share/triptych]",
    )
    store = click.option(
        "--store",
        default="",
        metavar="FOLDER|URL",
        help="What keeps the pictures: a folder, or s3://BUCKET/PREFIX.  [default: pictures in the same place]",
    )
    keep_days = click.option(
        "--keep-days",
        type=click.FloatRange(0, min_open=True),
        help="Runs that ended longer ago are let go, with their pictures.  [default: none]",
    )
    keep_bytes = click.option(
        "--keep-bytes",
        type=ByteSize(),
        help="Where all pictures take more, the oldest finished runs are let go: 500M, 20G.  [default: no limit]",
    )
    return journal(store(keep_days(keep_bytes(command))))
