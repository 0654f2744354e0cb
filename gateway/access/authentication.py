"""Bearer tokens: makes a Caller or an error of the `authorization` header of a gRPC or HTTP call.

The tokens are hashes in a file (token_file.py) that is read again when it changes, or JWTs of an OpenID provider (oidc.py).
HTTP asks `authenticate`; the gate in
front of the gRPC servicer asks `enter`, and the servicer's methods ask `current_caller`.
"""

import hmac
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from gateway.access.caller import Caller
from gateway.access.oidc import InvalidJwt, OidcVerifier, looks_like_jwt
from gateway.access.signing_keys import KeysUnavailable
from gateway.access.token_file import TokenEntry, TokenFileError, hash_token, read_tokens, stamp
from services.errors import NotReady, PermissionDenied, Unauthenticated
from services.serving.request_log import current_request

log = logging.getLogger(__name__)


class TokenExpired(Unauthenticated):
    reason = "TOKEN_EXPIRED"


class TokenInvalid(Unauthenticated):
    reason = "TOKEN_INVALID"


class Authentication:
    """Everybody who may call. Without a file of tokens and an issuer, all may, and all see everything."""

    def __init__(self, path: Path | None = None, oidc: OidcVerifier | None = None) -> None:
        """Raises TokenFileError when there is a file and it cannot be used."""
        self._path = path
        self._oidc = oidc
        self._stamp: tuple[int, ...] = ()
        self._entries: tuple[TokenEntry, ...] = ()
        if path is not None:
            self._stamp, self._entries = stamp(path), read_tokens(path)

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return self._path is None and self._oidc is None

    async def prepare(self, authorization: str | None) -> None:
        """Fetches what `authenticate` needs for a token: keys of the issuer that are not known yet."""
        token = _bearer(authorization)
        if self._oidc is not None and token and looks_like_jwt(token):
            await self._oidc.prepare(token)

    def authenticate(self, authorization: str | None, *, peer: str = "") -> Caller:
        """The caller whose token it is; raises Unauthenticated without a valid one, PermissionDenied for an unknown one.

        Without tokens and issuer, the caller is the address `peer`.
        """
        if self.is_open:
            return Caller(peer or "local:", sees_all=True)
        token = _bearer(authorization)
        if not token:
            raise Unauthenticated(
                "expected a token in the header `authorization: Bearer TOKEN` (on the command line TRIPTYCH_TOKEN), got none; "
                "the operator of this gateway makes one with `triptych tokens add`"
                + (", or use one of its OpenID provider" if self._oidc else "")
            )
        if self._oidc is not None and looks_like_jwt(token):
            return _verified(self._oidc, token)
        return self._caller_of(token)

    async def enter(self, authorization: str | None, peer: str) -> str:
        """As `authenticate`, for `current_caller` in the rest of this task; returns the caller's name."""
        await self.prepare(authorization)
        caller = self.authenticate(authorization, peer=peer)
        # Every call has a task, and so a context, of its own: nobody has to take the caller out again.
        _current.set(caller)
        return caller.name

    def _caller_of(self, token: str) -> Caller:
        if self._path is not None:
            self._read_again(self._path)
        digest = hash_token(token)
        # All of them, also after the right one: the time does not depend on what is in the file.
        found = [entry for entry in self._entries if hmac.compare_digest(entry.sha256, digest)]
        if not found:
            # The beginning of its hash: who has the token finds it so, and nobody else learns anything.
            _note_refused(f"unknown token with sha256 {digest[:12]}")
            raise PermissionDenied("this gateway does not know the token; it may have been revoked")
        entry = found[0]
        if entry.has_expired(datetime.now(UTC)):
            _note_refused(f"{entry.caller.name}, token {entry.token_id}")
            raise TokenExpired(
                f"the token {entry.token_id} has expired; ask the operator for a new one (`triptych tokens rotate`)"
            )
        return entry.caller

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


def _verified(oidc: OidcVerifier, token: str) -> Caller:
    try:
        return oidc.verify(token)
    except InvalidJwt as error:
        _note_refused(error.hint)
        raise TokenInvalid(f"the token is refused: {error}") from None
    except KeysUnavailable:
        raise NotReady("tokens cannot be verified now, since their provider does not answer") from None


def _bearer(authorization: str | None) -> str:
    """The token of the header; empty where there is none."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _note_refused(who: str) -> None:
    """For the log line of the request: whose token it was, as far as that is known."""
    if (record := current_request()) is not None:
        record.claimed = who


_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """The caller of the gRPC call that is being served; raises LookupError outside of one."""
    return _current.get()
