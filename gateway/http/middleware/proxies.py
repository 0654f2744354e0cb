"""Forwarded headers of a trusted proxy: the caller's address, the scheme and the host name.

`Forwarded` (RFC 7239) or `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `-Prefix` are believed from proxies that are
trusted, and from nobody else. It is an ASGI wrapper.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"
SCHEMES = ("http", "https")
_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))\s*')
_ABSOLUTE = re.compile(r"https?://([^/]*)", re.IGNORECASE)
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")


@dataclass(frozen=True)
class TrustedProxies:
    """Networks whose headers are believed."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    is_any: bool = False

    @classmethod
    def parse(cls, texts: Collection[str]) -> "TrustedProxies":
        """From addresses, networks such as 10.0.0.0/8, or "*". Raises ValueError."""
        networks = []
        for text in texts:
            if text == ANY:
                continue
            try:
                networks.append(ip_network(text, strict=False))
            except ValueError:
                raise ValueError(
                    f"expected an address or a network, such as 10.0.0.5 or 10.0.0.0/8, or *, got {text!r}"
                ) from None
        return cls(tuple(networks), ANY in texts)

    def __contains__(self, host: object) -> bool:
        with suppress(ValueError):
            address = ip_address(str(host).partition("%")[0])
            # IPv4 on a socket of both families.
            mapped = getattr(address, "ipv4_mapped", None)
            return self.is_any or any((mapped or address) in network for network in self.networks)
        return self.is_any


@dataclass(frozen=True)
class Hop:
    """The entry of one proxy about the caller before it; may be empty."""

    client: str = ""
    scheme: str = ""
    host: str = ""


class ProxyHeadersMiddleware:
    """Has `app` see the caller, the scheme and the host that the outermost trusted proxy saw."""

    def __init__(self, app: ASGIApp, proxies: TrustedProxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = _without_authority(scope)
            peer = (scope.get("client") or ("", 0))[0]
            if peer in self._proxies:
                scope = self._seen_from_outside(scope, peer)
        await self._app(scope, receive, send)

    def _seen_from_outside(self, scope: Scope, peer: str) -> Scope:
        headers = Headers(scope=scope)
        hops = list(_forwarded(headers)) if "forwarded" in headers else list(_x_forwarded(headers))
        client = Hop(peer)
        # The last entry is the nearest proxy's; those before are worth as much as who wrote them.
        for hop in reversed(hops):
            if client.client not in self._proxies:
                break
            client = Hop(hop.client or client.client, hop.scheme or client.scheme, hop.host or client.host)
        changed = dict(scope)
        changed["client"] = (client.client, 0)
        if client.scheme in SCHEMES:
            changed["scheme"] = client.scheme
        if client.host:
            named = [(name, value) for name, value in scope["headers"] if name != b"host"]
            changed["headers"] = [(b"host", client.host.encode("latin-1", "replace")), *named]
        prefix = headers.get("x-forwarded-prefix", "").split(",")[-1].strip()
        if _PREFIX.fullmatch(prefix):
            changed["root_path"] = prefix.rstrip("/")
            # Starlette takes the prefix off; a proxy that has done so already gives the path without it.
            if not scope["path"].startswith(changed["root_path"] + "/"):
                changed["path"] = changed["root_path"] + scope["path"]
        return changed


def _without_authority(scope: Scope) -> Scope:
    """A request for http://HOST/PATH, as clients ask a proxy and servers must accept (RFC 9112, 3.2.2), as one for /PATH."""
    found = _ABSOLUTE.match(scope["path"])
    if found is None:
        return scope
    named = [(name, value) for name, value in scope["headers"] if name != b"host"]
    host = (b"host", found[1].encode("latin-1", "replace"))
    return {**scope, "path": scope["path"][found.end() :] or "/", "headers": [host, *named]}


def _forwarded(headers: Headers) -> Iterator[Hop]:
    """The entries of `Forwarded`, the outermost first; one that cannot be read is empty."""
    for entry in _split_outside_quotes(",".join(headers.getlist("forwarded"))):
        pairs = {}
        for part in entry.split(";") if '"' not in entry else _PAIR.finditer(entry):
            found = _PAIR.fullmatch(part) if isinstance(part, str) else part
            if found is not None:
                quoted, plain = found[2], found[3]
                pairs[found[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        yield Hop(_address(pairs.get("for", "")), pairs.get("proto", "").lower(), pairs.get("host", ""))


def _x_forwarded(headers: Headers) -> Iterator[Hop]:
    clients = _listed(headers, "x-forwarded-for")
    schemes, hosts = _listed(headers, "x-forwarded-proto"), _listed(headers, "x-forwarded-host")
    port = (_listed(headers, "x-forwarded-port") or [""])[-1]
    for place in range(max(len(clients), len(schemes), len(hosts))):
        # One proxy of several may write its own header alone: each list is read from its end.
        host = _from_end(hosts, place, max(len(clients), len(schemes), len(hosts)))
        if host and port.isdecimal() and ":" not in host.rpartition("]")[2]:
            host = host if port in ("80", "443") else f"{host}:{port}"
        count = max(len(clients), len(schemes), len(hosts))
        yield Hop(_address(_from_end(clients, place, count)), _from_end(schemes, place, count).lower(), host)


def _from_end(values: Sequence[str], place: int, count: int) -> str:
    index = place - (count - len(values))
    return values[index] if index >= 0 else ""


def _listed(headers: Headers, name: str) -> list[str]:
    return [part.strip() for value in headers.getlist(name) for part in value.split(",") if part.strip()]


def _address(node: str) -> str:
    """The address of a node such as "192.0.2.1:4711" or "[2001:db8::1]:4711"; empty for "unknown" and other names."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    with suppress(ValueError):
        return str(ip_address(node))
    return ""


def _split_outside_quotes(text: str) -> list[str]:
    return [part for part in re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text) if part.strip()]
