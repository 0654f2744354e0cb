"""`triptych tokens`: adds, rotates, lists, revokes and prunes tokens. A token is shown once and stored as a hash.

A gateway that runs takes up the changed file with its next call.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click

from gateway.access.caller import Caller
from gateway.access.token_file import (
    TokenEntry,
    TokenFileError,
    locked,
    new_token,
    read_tokens,
    write_tokens,
)
from triptych.cli.terminal.durations import Duration, format_duration
from triptych.terminal_text import echo, escape_json

Command = TypeVar("Command", bound=Callable[..., None])

file_option = click.option(
    "--tokens",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default="tokens.json",
    help="The file of tokens.",
)
lifetime_option = click.option(
    "--expires-in",
    "lifetime",
    type=Duration(),
    help="Its lifetime, such as 90d.  [default: it does not expire]",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would be removed, and remove nothing."
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
@lifetime_option
def add(
    name: str,
    path: Path,
    lifetime: timedelta | None,
    sees_all: bool | None,
    max_running_runs: int | None,
    max_queued_runs: int | None,
    max_images_per_run: int | None,
) -> None:
    """Make a token for the caller NAME and print it: it is not kept, and cannot be shown again.

    A caller can have several tokens, so that one can be replaced without a break. Rights and limits are the caller's:
    those that are given here hold for all its tokens, those that are not stay as they are.
    """
    given = {
        "max_running_runs": max_running_runs,
        "max_queued_runs": max_queued_runs,
        "max_images_per_run": max_images_per_run,
    }
    with locked(path):
        entries = _read(path) if path.exists() else ()
        known = next((entry.caller for entry in entries if entry.caller.name == name), Caller(name))
        limits = replace(
            known.limits, **{limit: value for limit, value in given.items() if value is not None}
        )
        caller = Caller(name, known.sees_all if sees_all is None else sees_all, limits)
        try:
            token, entry = new_token(caller, lifetime)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="NAME") from None
        others = [replace(other, caller=caller) if other.caller.name == name else other for other in entries]
        write_tokens(path, [*others, entry])
    _show_token(token, entry, path)


@tokens.command()
@click.argument("name")
@file_option
@click.option(
    "--overlap",
    type=Duration(),
    default="7d",
    show_default=True,
    help="How long the tokens that there are stay valid; 0s: not at all.",
)
@lifetime_option
def rotate(name: str, path: Path, overlap: timedelta, lifetime: timedelta | None) -> None:
    """Make a new token for the caller NAME and print it; its other tokens expire after the overlap.

    Those that expire earlier stay as they are. Rights and limits are those of the caller.
    """
    with locked(path):
        entries = _read(path)
        caller = next((entry.caller for entry in entries if entry.caller.name == name), None)
        if caller is None:
            raise click.ClickException(f"{path} has no caller {name!r}; see `triptych tokens list`")
        token, entry = new_token(caller, lifetime)
        end = datetime.now(UTC).replace(microsecond=0) + overlap
        others = [
            replace(old, expires=min(end, old.expires or end)) if old.caller.name == name else old
            for old in entries
        ]
        write_tokens(path, [*others, entry])
    for old in others:
        if old.caller.name == name and not old.has_expired(datetime.now(UTC)):
            echo(f"token {old.token_id} of {name} {_expiry(old)}", err=True)
    _show_token(token, entry, path)


@tokens.command("list")
@file_option
@click.option("--json", "as_json", is_flag=True, help="One token a line, as JSON.")
def list_tokens(path: Path, as_json: bool) -> None:
    """Print the callers and the ids of their tokens."""
    for entry in _read(path):
        limits = {name: value for name, value in vars(entry.caller.limits).items() if value is not None}
        if as_json:
            item = {
                "caller": entry.caller.name,
                "id": entry.token_id,
                "created": entry.created,
                "expires": entry.expires.isoformat() if entry.expires else None,
                "expired": entry.has_expired(datetime.now(UTC)),
                "sees_all": entry.caller.sees_all,
                "limits": limits,
            }
            echo(escape_json(json.dumps(item)))
            continue
        sees = "all runs" if entry.caller.sees_all else "own runs"
        extra = "".join(f"  {name}={value}" for name, value in limits.items())
        times = f"{_age(entry):<8} old  {_expiry(entry):<20}"
        echo(f"{entry.token_id}  {times}  {entry.caller.name:<16} {sees}{extra}")


@tokens.command()
@click.argument("which")
@file_option
@dry_run_option
def revoke(which: str, path: Path, dry_run: bool) -> None:
    """Take a token away, by its id, or all tokens of a caller, by its name; prints which."""
    with locked(path):
        entries = _read(path)
        revoked = [entry for entry in entries if which in (entry.token_id, entry.caller.name)]
        if not revoked:
            raise click.ClickException(
                f"{path} has no token with the id and no caller with the name {which!r}; see `triptych tokens list`"
            )
        _remove(path, entries, revoked, dry_run=dry_run)


@tokens.command()
@file_option
@dry_run_option
def prune(path: Path, dry_run: bool) -> None:
    """Remove the tokens that have expired. A caller's rights and limits go with its last token."""
    with locked(path):
        entries = _read(path)
        expired = [entry for entry in entries if entry.has_expired(datetime.now(UTC))]
        _remove(path, entries, expired, dry_run=dry_run)


def _remove(
    path: Path, entries: Sequence[TokenEntry], removed: Sequence[TokenEntry], *, dry_run: bool
) -> None:
    for entry in removed:
        echo(f"{entry.token_id} of {entry.caller.name}, {_age(entry)} old, {_expiry(entry)}", err=True)
    if not dry_run and removed:
        write_tokens(path, [entry for entry in entries if entry not in removed])
    done = "would remove" if dry_run else "removed"
    echo(f"{done} {len(removed)} of {len(entries)} tokens", err=True)


def _show_token(token: str, entry: TokenEntry, path: Path) -> None:
    echo(token)
    echo(
        f"token {entry.token_id} of {entry.caller.name}, {_expiry(entry)}, kept in {path} as a hash; it is not shown again",
        err=True,
    )


def _age(entry: TokenEntry) -> str:
    try:
        return format_duration(datetime.now(UTC) - datetime.fromisoformat(entry.created))
    except (ValueError, TypeError):
        return "unknown"


def _expiry(entry: TokenEntry) -> str:
    if entry.expires is None:
        return "does not expire"
    left = entry.expires - datetime.now(UTC)
    return (
        f"expires in {format_duration(left)}"
        if left > timedelta()
        else f"expired {format_duration(-left)} ago"
    )


def _read(path: Path) -> tuple[TokenEntry, ...]:
    try:
        return read_tokens(path)
    except TokenFileError as error:
        raise click.ClickException(str(error)) from None
