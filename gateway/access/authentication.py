"""Bearer tokens: makes a Caller or an error of the `authorization` header of a gRPC or HTTP call.

The tokens are hashes in a file (token_file.py) that is read again when it changes. HTTP asks `authenticate`; the gate in
front of the gRPC servicer asks `enter`, and the servicer's methods ask `current_caller`.
"""

import hmac
import logging
from contextvars import ContextVar
from pathlib import Path

from gateway.access.caller import Caller
from gateway.access.token_file import TokenEntry, TokenFileError, hash_token, read_tokens, stamp
from services.errors import PermissionDenied, Unauthenticated

log = logging.getLogger(__name__)


class Authentication:
    """Everybody who may call. Without a file there are no tokens: all may, and all see everything."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises TokenFileError when there is a file and it cannot be used."""
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._entries: tuple[TokenEntry, ...] = ()
        if path is not None:
            self._stamp, self._entries = stamp(path), read_tokens(path)

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return self._path is None

    def authenticate(self, authorization: str | None, *, peer: str = "") -> Caller:
        """The caller whose token it is; raises Unauthenticated without one and PermissionDenied for an unknown one.

        Without tokens, the caller is the address `peer`.
        """
        if self._path is None:
            return Caller(peer or "local:", sees_all=True)
        self._read_again(self._path)
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "expected a token in the header `authorization: Bearer TOKEN` (on the command line TRIPTYCH_TOKEN), got none; "
                "the operator of this gateway makes one with `triptych tokens add`"
            )
        digest = hash_token(token.strip())
        # All of them, also after the right one: the time does not depend on what is in the file.
        found = [entry.caller for entry in self._entries if hmac.compare_digest(entry.sha256, digest)]
        if not found:
            raise PermissionDenied("this gateway does not know the token; it may have been revoked")
        return found[0]

    def enter(self, authorization: str | None, peer: str) -> str:
        """As `authenticate`, for `current_caller` in the rest of this task; returns the caller's name."""
        caller = self.authenticate(authorization, peer=peer)
        # Every call has a task, and so a context, of its own: nobody has to take the caller out again.
        _current.set(caller)
        return caller.name

    def _read_again(self, path: Path) -> None:
        """Takes up a changed file. One that cannot be used changes nothing: half an edit must lock nobody out."""
        try:
            new = stamp(path)
            if new == self._stamp:
                return
            self._entries, self._stamp = read_tokens(path), new
            log.info("read the tokens anew: there are %d", len(self._entries))
        except TokenFileError as error:
            if self._stamp:  # said once, not with every call
                log.error("the tokens stay as they were: %s", error)  # noqa: TRY400 - a file's fault, no bug's
            self._stamp = ()


_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """The caller of the gRPC call that is being served; raises LookupError outside of one."""
    return _current.get()
