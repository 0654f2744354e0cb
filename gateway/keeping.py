"""Where a gateway keeps its runs and their pictures, as the command line names it."""

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from gateway.journal import Journal, open_journal
from gateway.store import Store, open_store

NOWHERE = "none"


@dataclass(frozen=True)
class Places:
    """A journal's path or URL, or "none" for one that ends with the process; a store's, "" beside the journal."""

    journal: str = ""
    store: str = ""


@asynccontextmanager
async def kept_at(places: Places) -> AsyncIterator[tuple[Journal, Store]]:
    """Opens both. Raises BadJournal or BadStore, which say what to do."""
    async with AsyncExitStack() as stack:
        folder = data_folder()
        if places.journal == NOWHERE:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="triptych-")))
        journal = places.journal if places.journal not in ("", NOWHERE) else str(folder / "journal.db")
        store = open_store(places.store or str(folder / "pictures"))
        stack.push_async_callback(store.close)
        await store.check()
        yield await stack.enter_async_context(open_journal(journal, secrets.token_hex(8))), store


def data_folder() -> Path:
    """The user's own, where XDG has it."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return Path(base) / "triptych"


def kept_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--journal and --store."""
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
    return journal(store(command))
