"""Signed links to images: they need no token, and expire.

The key is this process's own, drawn when it starts: nothing has to be kept secret on a disk, and a link that is lost
with the process would have ended within the hour.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from services.errors import PermissionDenied

# As long as OpenAI's.
LIFETIME_S = 3600
SIGNED = ("sha256", "format", "compression", "size", "expires")


class LinkInvalid(PermissionDenied):
    reason = "LINK_INVALID"


class LinkSigner:
    def __init__(self, key: bytes | None = None, clock: Callable[[], float] = time.time) -> None:
        self._key = key or secrets.token_bytes(32)
        self._clock = clock

    def sign(
        self, sha256: str, output_format: str, compression: int, size: tuple[int, int] | None = None
    ) -> str:
        """The path and query of a picture in that format and size (None: its own), good for an hour."""
        signed = {
            "sha256": sha256,
            "format": output_format,
            "compression": str(compression),
            "size": "x".join(str(side) for side in size or ()),
            "expires": str(int(self._clock()) + LIFETIME_S),
        }
        query = {name: signed[name] for name in SIGNED[1:] if signed[name]}
        return f"/images/{sha256}?{urlencode({**query, 'signature': self._signature(signed)})}"

    def check(self, sha256: str, query: Mapping[str, str]) -> tuple[str, int, tuple[int, int] | None]:
        """The format, compression and size of a link that we signed; raises LinkInvalid for any other."""
        signed = {**{name: query.get(name, "") for name in SIGNED}, "sha256": sha256}
        given = query.get("signature", "").encode()
        if not hmac.compare_digest(self._signature(signed).encode(), given):
            raise LinkInvalid(
                "this gateway did not sign the link, or it has been changed; ask for the picture anew"
            )
        if int(signed["expires"]) < self._clock():
            raise LinkInvalid("the link has expired; ask for the picture anew")
        width, _, height = signed["size"].partition("x")
        return signed["format"], int(signed["compression"]), (int(width), int(height)) if width else None

    def _signature(self, signed: Mapping[str, str]) -> str:
        text = "\n".join(signed[name] for name in SIGNED)
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
