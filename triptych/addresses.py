"""Parses the address of one or several gateways.

HOST:PORT, https://HOST[:PORT], [::1]:PORT, unix:PATH, dns:///NAME:PORT, or several HOST:PORT with commas between: the first
that answers is used, and another one when it goes away. It opens nothing.
"""

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

SCHEME = "https://"
HTTPS_PORT = 443
MAX_PORT = 65_535
EXAMPLE = "127.0.0.1:50050"
# What gRPC's C core looks at, in this order (grpc/doc/environment_variables.md).
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


@dataclass(frozen=True)
class Address:
    """A checked address: `hosts` with their ports; none where `target` is enough."""

    text: str
    hosts: tuple[tuple[str, int], ...]
    is_encrypted: bool
    target: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether it never leaves this machine, so that no proxy is for it."""
        return self.target.startswith("unix:") or (
            bool(self.hosts) and all(_is_loopback(host) for host, _ in self.hosts)
        )

    def to_target(self) -> str:
        """For gRPC, which takes several addresses as numbers only. Raises OSError for names that are not known."""
        if self.target:
            return self.target
        if len(self.hosts) == 1:
            return host_port(*self.hosts[0])
        numbers = [(number, port) for host, port in self.hosts for number in _numbers(host, port)]
        if not numbers:
            raise OSError(f"{self.text!r}: none of these names is known to this machine")
        # One scheme of gRPC's is for one family.
        four = [host_port(number, port) for number, port in numbers if ":" not in number]
        six = [host_port(number, port) for number, port in numbers if ":" in number]
        return f"ipv4:{','.join(four)}" if four else f"ipv6:{','.join(six)}"


def check_address(text: str) -> Address:
    """Reads an address; raises ValueError with what was expected."""
    plain = text.strip()
    if plain.startswith(("unix:", "dns:")):
        if not plain.partition(":")[2].strip("/"):
            raise ValueError(f"expected unix:PATH or dns:///NAME:PORT, got {_shown(text)}")
        return Address(plain, (), is_encrypted=False, target=plain)
    scheme, separator, rest = plain.partition("://")
    if not separator:
        scheme, rest = "", plain
    scheme = scheme.lower()
    if scheme not in ("", "https", "http", "grpc", "grpcs"):
        raise ValueError(f"expected HOST:PORT or https://HOST:PORT, such as {EXAMPLE}, got {_shown(text)}")
    rest = rest.rstrip("/")
    if "@" in rest:
        # Not shown: it may be a password.
        raise ValueError("expected HOST:PORT without a user before it; a token goes into --token")
    if "/" in rest:
        raise ValueError(f"expected HOST:PORT without a path, got {_shown(text)}")
    is_encrypted = scheme in ("https", "grpcs")
    hosts = tuple(
        _read_host(part.strip(), text, HTTPS_PORT if is_encrypted else None) for part in rest.split(",")
    )
    return Address(plain, hosts, is_encrypted)


def host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_for(address: Address) -> str:
    """The proxy that gRPC goes through to this address, and the variable that names it; empty for none."""
    if address.is_loopback or not address.hosts:
        return ""
    host = address.hosts[0][0]
    for name in NO_PROXY_VARIABLES:
        for entry in os.environ.get(name, "").split(","):
            entry = entry.strip().lstrip(".")
            if entry and (entry == "*" or host == entry or host.endswith(f".{entry}")):
                return ""
    for name in PROXY_VARIABLES:
        if value := os.environ.get(name, ""):
            # A proxy's password is not for logs.
            return f"{re.sub(r'//[^@/]*@', '//', value)} ({name})"
    return ""


def _read_host(part: str, text: str, default_port: int | None) -> tuple[str, int]:
    host, port = _split(part, text)
    if not port and default_port is not None:
        return host, default_port
    if not port:
        raise ValueError(f"expected a port, such as {host_port(host, 50050)}, got {_shown(text)}")
    if not port.isascii() or not port.isdecimal() or not 1 <= int(port[:9]) <= MAX_PORT:
        raise ValueError(f"expected a port from 1 to {MAX_PORT}, got {_shown(port)} in {_shown(text)}")
    return host, int(port)


def _split(part: str, text: str) -> tuple[str, str]:
    if part.startswith("["):
        host, bracket, port = part[1:].partition("]")
        with suppress(ValueError):
            if (
                bracket
                and (not port or port.startswith(":"))
                and ip_address(host.partition("%")[0]).version == 6
            ):
                return host, port.removeprefix(":")
        raise ValueError(f"expected [IPV6]:PORT, such as [::1]:50050, got {_shown(text)}")
    host, _, port = part.partition(":")
    if ":" in port:
        raise ValueError(f"expected IPv6 in brackets, such as [::1]:50050, got {_shown(text)}")
    if not host or not _HOST_NAME.fullmatch(host):
        raise ValueError(f"expected HOST:PORT, such as {EXAMPLE}, got {_shown(text)}")
    return host, port


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host.partition("%")[0]).is_loopback
    return host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost")


def _numbers(host: str, port: int) -> Sequence[str]:
    with suppress(ValueError):
        return [str(ip_address(host))]
    with suppress(OSError):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return []


def _shown(text: str) -> str:
    return repr(text[:80])
