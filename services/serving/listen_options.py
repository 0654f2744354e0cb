"""Options for addresses and certificates; refuses to listen beyond loopback without protection."""

import ipaddress
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click

from services.errors import TriptychError
from services.serving.tls import CertificateFiles

Command = TypeVar("Command", bound=Callable[..., None])

FILE = click.Path(dir_okay=False, path_type=Path)


class UnsafeAddress(TriptychError):
    reason = "UNSAFE_ADDRESS"


def tls_options(command: Command) -> Command:
    """--tls-cert, --tls-key, --tls-client-ca and --insecure, for `certificate_of` and `check_address`; --health-port."""
    for option in (
        click.option("--health-port", type=click.IntRange(1, 65535), envvar="TRIPTYCH_HEALTH_PORT", help="Port for health checks without TLS, for probes that have no certificate."),
        click.option("--insecure", is_flag=True, envvar="TRIPTYCH_INSECURE", help="Listen beyond loopback without certificates and tokens."),
        click.option("--tls-client-ca", type=FILE, envvar="TRIPTYCH_TLS_CLIENT_CA", help="Refuse clients without a certificate of this authority."),
        click.option("--tls-key", type=FILE, envvar="TRIPTYCH_TLS_KEY", help="Its key."),
        click.option("--tls-cert", type=FILE, envvar="TRIPTYCH_TLS_CERT", help="Certificate of this process; read again when the file changes."),
    ):  # fmt: skip
        command = option(command)
    return command


def certificate_of(cert: Path | None, key: Path | None, client_ca: Path | None) -> CertificateFiles | None:
    """What the options name; None without a certificate. Raises CertificateError when it cannot be used."""
    if cert is None and key is None:
        if client_ca is not None:
            raise click.UsageError("--tls-client-ca needs --tls-cert and --tls-key beside it")
        return None
    return CertificateFiles(cert, key, client_ca)


def check_address(host: str, *, options: Mapping[str, object], insecure: bool) -> None:
    """Raises UnsafeAddress where the host is beyond loopback and one of the options that make it safe has no value."""
    missing = [option for option, value in options.items() if not value]
    if missing and not insecure and not is_loopback(host):
        raise UnsafeAddress(
            f"refused to listen on {host or 'all addresses'} without {' and '.join(missing)}, since everybody who reaches "
            "it could use it: `triptych certs` and `triptych tokens` make what is missing; --insecure listens all the same"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there; a name that does not resolve counts as open."""
    try:
        found = socket.getaddrinfo(host or "::", None)
        return all(ipaddress.ip_address(address[4][0]).is_loopback for address in found)
    except (OSError, ValueError):
        return False
