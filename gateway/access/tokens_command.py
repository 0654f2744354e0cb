"""`triptych tokens`: adds, lists and revokes tokens. A token is shown once and stored as a hash.

A gateway that runs takes up the changed file with its next call.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import click

from gateway.access.caller import Caller
from gateway.access.token_file import TokenEntry, TokenFileError, new_token, read_tokens, write_tokens

Command = TypeVar("Command", bound=Callable[..., None])

file_option = click.option(
    "--tokens",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="tokens.json",
    help="The file of tokens.",
)


@click.group(no_args_is_help=True)
def tokens() -> None:
    """Manage the tokens of callers."""


@tokens.command()
@click.argument("name")
@file_option
@click.option("--sees-all/--sees-own", default=None, help="Sees the runs of all callers.  [default: own]")
@click.option("--max-running-runs", type=click.IntRange(0), help="Concurrent runs.  [default: no own limit]")
@click.option("--max-queued-runs", type=click.IntRange(0), help="Runs that wait.  [default: no own limit]")
@click.option(
    "--max-images-per-run", type=click.IntRange(0), help="Images of one run.  [default: no own limit]"
)
def add(
    name: str,
    path: Path,
    sees_all: bool | None,
    max_running_runs: int | None,
    max_queued_runs: int | None,
    max_images_per_run: int | None,
) -> None:
    """Make a token for the caller NAME and print it: it is not kept, and cannot be shown again.

    A caller can have several tokens, so that one can be replaced without a break. Rights and limits are the caller's:
    those that are given here hold for all its tokens, those that are not stay as they are.
    """
    entries = _read(path) if path.exists() else ()
    known = next((entry.caller for entry in entries if entry.caller.name == name), Caller(name))
    given = {
        "max_running_runs": max_running_runs,
        "max_queued_runs": max_queued_runs,
        "max_images_per_run": max_images_per_run,
    }
    limits = replace(known.limits, **{limit: value for limit, value in given.items() if value is not None})
    caller = Caller(name, known.sees_all if sees_all is None else sees_all, limits)
    try:
        token, entry = new_token(caller)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None
    kept = [replace(other, caller=caller) if other.caller.name == name else other for other in entries]
    write_tokens(path, [*kept, entry])
    click.echo(token)
    click.echo(f"token {entry.token_id} of {name}, kept in {path} as a hash; it is not shown again", err=True)


@tokens.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="One token a line, as JSON.")
def list_tokens(path: Path, as_json: bool) -> None:
    """Print the callers and the ids of their tokens."""
    for entry in _read(path):
        limits = {name: value for name, value in vars(entry.caller.limits).items() if value is not None}
        if as_json:
            item = {"caller": entry.caller.name, "id": entry.token_id, "created": entry.created}
            click.echo(json.dumps({**item, "sees_all": entry.caller.sees_all, "limits": limits}))
            continue
        sees = "all runs" if entry.caller.sees_all else "own runs"
        extra = "".join(f"  {name}={value}" for name, value in limits.items())
        click.echo(f"{entry.token_id}  {entry.created}  {entry.caller.name:<16} {sees}{extra}")


@tokens.command()
@click.argument("which")
@file_option
def revoke(which: str, path: Path) -> None:
    """Take a token away, by its id, or all tokens of a caller, by its name."""
    entries = _read(path)
    kept = [entry for entry in entries if which not in (entry.token_id, entry.caller.name)]
    if len(kept) == len(entries):
        raise click.ClickException(
            f"{path} has no token with the id and no caller with the name {which!r}; see `triptych tokens list`"
        )
    write_tokens(path, kept)
    click.echo(f"revoked {len(entries) - len(kept)} of {len(entries)} tokens", err=True)


def _read(path: Path) -> tuple[TokenEntry, ...]:
    try:
        return read_tokens(path)
    except TokenFileError as error:
        raise click.ClickException(str(error)) from None
