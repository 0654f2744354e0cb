"""Which addresses webhooks may be sent to: the operator's allow-list, and no address of a private network.

A name is resolved before each delivery and the connection goes to the address that was checked, so that a name that
changes its address in between reaches nothing else.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from services.errors import InvalidRequest, TriptychError

MAX_URL_CHARS = 2048
RESOLVE_TIMEOUT_S = 5.0
PORTS = {"https": 443, "http": 80}


class ForbiddenAddress(TriptychError):
    """A name resolves to an address that webhooks may not be sent to."""


@dataclass(frozen=True)
class AllowedUrls:
    """A prefix of URLs: scheme, host and port are equal, the path begins with this one. `*.` stands for any subdomain."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> "AllowedUrls":
        """Raises ValueError."""
        parts = _split(text)
        if parts.query:
            raise ValueError(f"expected a URL without a query, got {text!r}")
        return cls(parts.scheme, (parts.hostname or "").lower(), _port(parts), parts.path.rstrip("/"))

    def matches(self, parts: SplitResult) -> bool:
        host = (parts.hostname or "").lower()
        is_host = (
            host.endswith(self.host[1:]) and host != self.host[2:]
            if self.host.startswith("*.")
            else host == self.host
        )
        is_path = parts.path == self.path or parts.path.startswith(self.path + "/") or not self.path
        return is_host and is_path and (parts.scheme, _port(parts)) == (self.scheme, self.port)


@dataclass(frozen=True)
class WebhookPolicy:
    """`allows_private`: also addresses that are not public, such as loopback, for receivers in the own network."""

    allowed: Sequence[AllowedUrls] = ()
    allows_private: bool = False

    def check(self, url: str) -> None:
        """Raises InvalidRequest for a URL that no webhook is sent to."""
        if not url:
            return
        if not self.allowed:
            raise InvalidRequest(
                "webhook_url",
                "this gateway sends no webhooks; its operator allows addresses with --webhook-allow",
            )
        try:
            parts = _split(url)
        except ValueError as error:
            raise InvalidRequest("webhook_url", str(error)) from None
        # A server may take these for others than the prefix allows.
        if any(part in ("..", ".") for part in parts.path.replace("%2e", ".").replace("%2E", ".").split("/")):
            raise InvalidRequest("webhook_url", "its path must not have . or .. as a part")
        if not any(one.matches(parts) for one in self.allowed):
            raise InvalidRequest(
                "webhook_url", "is not among the addresses that this gateway's operator allows"
            )

    async def resolve(self, url: str) -> str:
        """The address to connect to. Raises ForbiddenAddress, or OSError where the name has none."""
        parts = _split(url)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(parts.hostname, _port(parts), type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
        if not self.allows_private and (wrong := [one for one in addresses if not is_public(one)]):
            raise ForbiddenAddress(f"{parts.hostname} has the address {wrong[0]}, which is not public")
        return str(addresses[0])


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is an address of the internet; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inside is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(inside)
    return address.is_global and not address.is_multicast


def _split(url: str) -> SplitResult:
    """Raises ValueError unless it is an absolute URL without a user, a fragment or control characters."""
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(f"expected a URL of at most {MAX_URL_CHARS} printable ASCII characters")
    try:
        parts = urlsplit(url)
        _port(parts)
    except (ValueError, KeyError):
        raise ValueError("expected https://HOST/PATH") from None
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("expected https://HOST/PATH, without a user and a fragment")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or PORTS[parts.scheme]
