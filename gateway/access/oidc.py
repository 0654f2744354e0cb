"""OpenID Connect: verifies JWTs of one issuer and makes a Caller of their claims.

Verification of signatures and claims is PyJWT's. Only asymmetric algorithms can be allowed: with them a public key is
never taken for a shared secret, and `none` is never accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from gateway.access.caller import Caller
from gateway.access.signing_keys import SigningKeys
from services.errors import TriptychError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
DEFAULT_ALGORITHMS = ("RS256", "ES256")
# Of the `typ` header: RFC 9068 has its own for access tokens.
TYPES = ("", "jwt", "at+jwt", "application/at+jwt")
MAX_TOKEN_BYTES = 16 * 2**10
MAX_SUBJECT = 255
# Callers with tokens have no colon in their names, and those without are addresses, so nobody can pose as another.
PREFIX = "oidc:"


@dataclass(frozen=True)
class OidcOptions:
    """`sees_all` is (claim, value): callers whose claim is or contains the value see all runs."""

    issuer: str
    audiences: Sequence[str]
    jwks_url: str = ""
    algorithms: Sequence[str] = DEFAULT_ALGORITHMS
    caller_claim: str = "sub"
    clock_skew_s: float = 60.0
    sees_all: tuple[str, str] | None = None


class InvalidJwt(TriptychError):
    """A JWT that is refused. `hint` names its unverified subject for the log."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class OidcVerifier:
    """The callers of one issuer."""

    def __init__(self, options: OidcOptions, keys: SigningKeys | None = None) -> None:
        """Raises ValueError for options that cannot be used."""
        if not options.audiences:
            raise ValueError(
                "an OpenID issuer needs an audience, or tokens for other services would be accepted"
            )
        if wrong := set(options.algorithms) - set(ALGORITHMS):
            raise ValueError(f"expected algorithms among {', '.join(ALGORITHMS)}, got {min(wrong)!r}")
        self._options = options
        self._keys = keys or SigningKeys(options.issuer, options.jwks_url)

    async def prepare(self, token: str) -> None:
        """Fetches the issuer's keys where that is needed to verify the token. Never raises for a bad token."""
        if (key_id := _key_id(token)) is not None:
            await self._keys.refresh(key_id)

    def verify(self, token: str) -> Caller:
        """The caller. Raises InvalidJwt for a token that is refused, and signing_keys.KeysUnavailable without the issuer's keys."""
        hint = _hint(token)
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self._options.algorithms:
                raise InvalidJwt(f"expected one signed with {' or '.join(self._options.algorithms)}", hint)
            if str(header.get("typ", "")).lower() not in TYPES or "crit" in header:
                raise InvalidJwt("its header has a `typ` or `crit` that is not supported", hint)
            key = self._keys.find(str(header.get("kid", "")))
            if key is None:
                raise InvalidJwt("its issuer has no such key", hint)
            if key.get("alg", header["alg"]) != header["alg"]:
                raise InvalidJwt("its key is for another algorithm", hint)
            claims = jwt.decode(
                token,
                jwt.PyJWK.from_dict(key, algorithm=header["alg"]),
                algorithms=[header["alg"]],
                audience=list(self._options.audiences),
                issuer=self._options.issuer,
                leeway=self._options.clock_skew_s,
                options={"require": ["exp", "iss", "aud", self._options.caller_claim]},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidJwt("it has expired", hint) from None
        except jwt.PyJWTError as error:
            raise InvalidJwt(_reason(error), hint) from None
        return self._caller(claims, hint)

    def _caller(self, claims: dict[str, Any], hint: str) -> Caller:
        subject = claims[self._options.caller_claim]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise InvalidJwt(
                f"expected {self._options.caller_claim} as text of 1 to {MAX_SUBJECT} letters", hint
            )
        sees_all = False
        if self._options.sees_all is not None:
            claim, value = self._options.sees_all
            have = claims.get(claim)
            sees_all = value in have if isinstance(have, list) else have == value
        return Caller(PREFIX + subject, sees_all)


def looks_like_jwt(token: str) -> bool:
    """Three parts: tokens of `triptych tokens` have no dot."""
    return token.count(".") == 2 and len(token) <= MAX_TOKEN_BYTES


def _key_id(token: str) -> str | None:
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError:
        return None


def _hint(token: str) -> str:
    """The claimed owner of the token, unverified, for the log of refusals."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return f"unverified {str(claims.get('sub'))[:80]!r} of {str(claims.get('iss'))[:80]!r}"
    except jwt.PyJWTError:
        return "an unreadable JWT"


def _reason(error: jwt.PyJWTError) -> str:
    """PyJWT's texts quote at most the names of claims."""
    return f"it is invalid: {str(error)[:120]}"
