"""The file of tokens: callers by name, what each may do, and the hashes of their tokens.

{"callers": {"NAME": {"sees_all": false, "limits": {"max_running_runs": 4}, "tokens": [
    {"id": "1f3c9a20", "sha256": "...", "created": "2026-01-31T12:00:00+00:00", "expires": "2026-05-01T12:00:00+00:00"}]}}}
"""

import fcntl
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from stat import S_ISREG
from typing import Any

from gateway.access.caller import Caller, CallerLimits
from services.errors import TriptychError
from triptych._files import Stamp, read_file, replacing, stamp_of

# With a prefix, people and secret scanners recognize a token that leaked.
TOKEN_PREFIX = "triptych_"  # noqa: S105 - no secret
# 256 bits from the system's generator cannot be guessed, so one fast hash of them is safe to keep.
TOKEN_BYTES = 32
# No colon: callers without tokens are named by their addresses, which have one, so neither can pose as the other.
CALLER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class TokenFileError(TriptychError):
    reason = "TOKEN_FILE"


@dataclass(frozen=True)
class TokenEntry:
    """A token in the file: its hash, never the token itself. `token_id` names it in commands and logs."""

    token_id: str
    sha256: str
    created: str
    caller: Caller
    # None: it does not expire.
    expires: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


def hash_token(token: str) -> str:
    """The hash that is stored and compared."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def new_token(caller: Caller, lifetime: timedelta | None = None) -> tuple[str, TokenEntry]:
    """A random token and its entry; raises ValueError for an invalid name of the caller.

    Without a `lifetime` it does not expire.
    """
    _check_name(caller.name)
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    now = datetime.now(UTC).replace(microsecond=0)
    expires = None if lifetime is None else now + lifetime
    return token, TokenEntry(secrets.token_hex(4), hash_token(token), now.isoformat(), caller, expires)


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """The tokens in a file; raises TokenFileError for an invalid file."""
    stamp(path)
    try:
        content = json.loads(read_file(path))
        return tuple(entry for name, item in content["callers"].items() for entry in _entries(name, item))
    except OSError as error:
        raise TokenFileError(
            f"cannot read the tokens in {path}: {error.strerror}; make it with `triptych tokens add`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = (
            f"{error.msg} in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else repr(error)
        )
        raise TokenFileError(
            f"{path} is no file of tokens ({cause}); mend it, or write another one with `triptych tokens add`"
        ) from None


def write_tokens(path: Path, entries: Sequence[TokenEntry]) -> None:
    """Replaces the file as a whole, readable by its owner alone."""
    callers: dict[str, dict[str, Any]] = {}
    for entry in entries:
        limits = {name: value for name, value in asdict(entry.caller.limits).items() if value is not None}
        item = {"sees_all": entry.caller.sees_all, "limits": limits, "tokens": []}
        token = {"id": entry.token_id, "sha256": entry.sha256, "created": entry.created}
        # Releases before refuse what is new to them, so it is written only where it is used.
        if entry.expires is not None:
            token["expires"] = entry.expires.isoformat()
        callers.setdefault(entry.caller.name, item)["tokens"].append(token)
    with replacing(path, mode=0o600) as file:
        file.write((json.dumps({"callers": callers}, indent=2) + "\n").encode())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """While the file is read and replaced, so that two commands at once lose no token."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def stamp(path: Path) -> Stamp:
    """What changes when the file does; raises TokenFileError."""
    try:
        status = path.stat()
    except OSError as error:
        raise TokenFileError(
            f"cannot read the tokens in {path}: {error.strerror}; make it with `triptych tokens add`"
        ) from None
    if not S_ISREG(status.st_mode):
        raise TokenFileError(f"expected a file of tokens, got {path}, which is something else")
    return stamp_of(status)


def _entries(name: str, item: Mapping[str, Any]) -> list[TokenEntry]:
    _check_name(name)
    _check_keys(item, {"sees_all", "limits", "tokens"}, f"caller {name!r}")
    sees_all = item.get("sees_all", False)
    if not isinstance(sees_all, bool):
        raise TypeError(f"sees_all of {name!r}: expected true or false, got {sees_all!r}")
    limits = item.get("limits", {})
    _check_keys(limits, {each.name for each in fields(CallerLimits)}, f"limits of {name!r}")
    for limit, value in limits.items():
        if type(value) is not int or value < 0:
            raise ValueError(f"{limit} of {name!r}: expected a whole number of at least 0, got {value!r}")
    caller = Caller(name, sees_all, CallerLimits(**limits))
    return [_entry(token, caller) for token in item["tokens"]]


def _entry(token: Mapping[str, Any], caller: Caller) -> TokenEntry:
    _check_keys(token, {"id", "sha256", "created", "expires"}, f"a token of {caller.name!r}")
    if not re.fullmatch("[0-9a-f]{64}", str(token["sha256"])):
        raise ValueError(f"token {token['id']!r} of {caller.name!r}: sha256 must be 64 hexadecimal digits")
    expires = datetime.fromisoformat(token["expires"]) if "expires" in token else None
    if expires is not None and expires.tzinfo is None:
        raise ValueError(
            f"token {token['id']!r} of {caller.name!r}: expires must have an offset, such as +00:00"
        )
    return TokenEntry(str(token["id"]), token["sha256"], str(token.get("created", "")), caller, expires)


def _check_name(name: str) -> None:
    if not CALLER_NAME.fullmatch(name):
        raise ValueError(
            f"a caller's name has 1 to 64 letters, digits and '.', '_', '-', '@', beginning with a letter or digit; "
            f"got {name!r}"
        )


def _check_keys(item: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := set(item) - known:
        raise ValueError(f"{where}: expected only {', '.join(sorted(known))}, got {sorted(unknown)[0]!r}")
