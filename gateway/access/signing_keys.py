"""Public keys of an OpenID provider (JWKS): fetched, cached, and fetched again when they rotate."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from services.errors import TriptychError

log = logging.getLogger(__name__)

# Keys are fetched again after so long, so that one that the provider has withdrawn is soon refused here.
REFRESH_AFTER_S = 300.0
# Without an answer of the provider, known keys are used for so long.
USE_FOR_S = 3600.0
# Tokens with unknown keys cause at most one request in this time.
RETRY_AFTER_S = 10.0
TIMEOUT_S = 5.0
MAX_BYTES = 2**20
MAX_KEYS = 100
MIN_RSA_BITS = 2048
DISCOVERY = "/.well-known/openid-configuration"
# Everything else of a key is left out, so that one with its private part is a public one here.
PUBLIC_PARTS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Key = dict[str, str]


class KeysUnavailable(TriptychError):
    """The provider's keys cannot be fetched; never shown to callers as it is."""


class SigningKeys:
    """The keys of one issuer by their ids. Not for several event loops."""

    def __init__(self, issuer: str, url: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        """Without `url`, the issuer's discovery document names the keys. Raises ValueError for an address without TLS."""
        check_url(issuer)
        if url:
            check_url(url)
        self._issuer, self._url = issuer, url
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched_at = self._tried_at = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    def find(self, key_id: str) -> Key | None:
        """A key that is cached. Raises KeysUnavailable if there is no recent answer of the provider."""
        if self._clock() - self._fetched_at > USE_FOR_S:
            raise KeysUnavailable(f"the keys of {self._issuer} cannot be fetched now")
        return self._keys.get(key_id)

    async def refresh(self, key_id: str) -> None:
        """Fetches the keys if they are old, or if this one is unknown. Old but usable keys are fetched in the background."""
        now = self._clock()
        is_usable = now - self._fetched_at <= USE_FOR_S and key_id in self._keys
        if is_usable and now - self._fetched_at <= REFRESH_AFTER_S or now - self._tried_at < RETRY_AFTER_S:
            if self._fetching is not None and not is_usable:
                await asyncio.shield(self._fetching)
            return
        if self._fetching is None:
            self._tried_at = now
            self._fetching = asyncio.create_task(self._fetch(), name="signing keys")
        if not is_usable:
            # One fetch for all callers who wait; it goes on if one of them leaves.
            await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            # Redirects could lead to an address that the operator has not named.
            async with httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False) as http:
                url = self._url or await self._discover(http)
                self._keys = parse_keys(await _get_json(http, url))
            self._fetched_at = self._clock()
        except (
            httpx.HTTPError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            jwt.PyJWTError,
        ) as error:
            log.warning(
                "cannot fetch the keys of %s: %s",
                self._issuer,
                str(error) or type(error).__name__,
                extra={"event": "oidc_keys_failed"},
            )
        finally:
            self._fetching = None

    async def _discover(self, http: httpx.AsyncClient) -> str:
        document = await _get_json(http, self._issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise ValueError(f"its discovery document is of {str(document.get('issuer'))[:200]!r}")
        url = str(document["jwks_uri"])
        check_url(url)
        return url


def parse_keys(document: Mapping[str, Any]) -> dict[str, Key]:
    """The usable keys of a JWKS, by id. Symmetric keys, short ones and those for encryption are left out."""
    keys: dict[str, Key] = {}
    for item in list(document["keys"])[:MAX_KEYS]:
        if item.get("kty") not in PUBLIC_PARTS or item.get("use", "sig") != "sig":
            continue
        key = {name: item[name] for name in ("kty", "alg", *PUBLIC_PARTS[item["kty"]]) if name in item}
        try:
            public = jwt.PyJWK.from_dict(key).key
        except jwt.PyJWTError:
            continue  # of a kind that is not supported
        if item["kty"] != "RSA" or public.key_size >= MIN_RSA_BITS:
            keys[str(item.get("kid", ""))] = key
    return keys


def check_url(url: str) -> None:
    """Raises ValueError unless it is an https URL, or http on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname or parts.scheme == "http" and parts.hostname in LOOPBACK:
        return
    raise ValueError(f"expected an https:// URL, got {url[:200]!r}")


async def _get_json(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S * 2), http.stream("GET", url) as response:
        if response.status_code != 200:
            raise ValueError(f"{url} answered {response.status_code}")
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > MAX_BYTES:
                raise ValueError(f"{url} answered more than {MAX_BYTES} bytes")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError(f"{url} answered no JSON object")  # noqa: TRY004 - of a document, not of a caller
    return document
