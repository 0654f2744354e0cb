"""`triptych certs`: makes a private authority and the certificates of one deployment.

A certificate is good for one thing: a server's does not open other servers, and the gateway's for calling stages does
not make it a stage.
"""

import ipaddress
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.private_files import make_private_folder
from triptych._files import read_file, replacing
from triptych.stages import WORKER_NAMES
from triptych.terminal_text import echo

SERVERS = (*WORKER_NAMES, "gateway")
CLIENT = "gateway-client"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650
# Clocks differ.
EARLIER = timedelta(hours=1)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    # Not --host: TRIPTYCH_HOST is the address that a service listens on.
    "--hostname",
    "hosts",
    multiple=True,
    help="A name or address that the servers are reached by, beside localhost and their own names; repeat it for more.",
)
@click.option("--days", type=click.IntRange(1), default=365, help="How long the certificates are valid.")
@click.option(
    "--renew",
    is_flag=True,
    help="Replace the certificates in FOLDER, for the same hosts, from the same authority.",
)
@click.option("--if-missing", is_flag=True, help="Do nothing if FOLDER has them.")
def certs(folder: Path, hosts: tuple[str, ...], days: int, renew: bool, if_missing: bool) -> None:
    """Make certificates in FOLDER: for the stages and the gateway, and for the gateway as the stages' caller.

    Each is NAME.crt with NAME.key: a stage's name, gateway or gateway-client. ca.crt is whom all of them trust. ca.key makes further ones; keep it away from the machines that serve.
    """
    names = [*SERVERS, CLIENT]
    there = [path for name in ("ca", *names) for path in files_of(folder, name) if path.exists()]
    if if_missing and len(there) == 2 * (len(names) + 1):
        return
    if renew:
        authority = read_authority(folder)
        hosts = (*hosts, *(host for name in SERVERS for host in hosts_of(folder, name) if host not in names))
    elif there:
        raise click.ClickException(
            f"{there[0]} is there already and is not overwritten: name another folder, or --renew to replace all but ca.*"
        )
    else:
        make_private_folder(folder)
        authority = make_authority()
        write(folder, "ca", authority)
    for name in SERVERS:
        write(folder, name, issue(authority, name, days=days, hosts=[name, *LOOPBACK, *hosts]))
    write(folder, CLIENT, issue(authority, CLIENT, days=days))
    echo(f"{', '.join(f'{name}.crt' for name in names)} in {folder}, good for {days} days", err=True)


def files_of(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a certificate and its key lie."""
    return folder / f"{name}.crt", folder / f"{name}.key"


def make_authority() -> Issued:
    """An authority that nobody knows but those who are given its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A number in the name: gRPC finds issuers by their names, and two authorities can be trusted while one is replaced.
    name = _name(f"Triptych authority {secrets.token_hex(4)}")
    cert = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issued(cert, key)


def issue(authority: Issued, name: str, *, days: int, hosts: Sequence[str] = ()) -> Issued:
    """A server's certificate for its hosts, or without any a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(name), authority.cert.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName(_general_names(hosts))
        builder = builder.add_extension(names, critical=False)
    return Issued(builder.sign(authority.key, hashes.SHA256()), key)


def read_authority(folder: Path) -> Issued:
    """The authority in a folder; raises ClickException."""
    cert, key = files_of(folder, "ca")
    try:
        loaded = serialization.load_pem_private_key(read_file(key), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise click.ClickException(f"{key} is no key that `triptych certs` made")
        return Issued(x509.load_pem_x509_certificate(read_file(cert)), loaded)
    except (OSError, ValueError, TypeError) as error:
        raise click.ClickException(f"cannot renew without {cert} and {key}: {error}") from None


def hosts_of(folder: Path, name: str) -> list[str]:
    """The hosts of a certificate in a folder; none where there is none."""
    try:
        cert = x509.load_pem_x509_certificate(read_file(files_of(folder, name)[0]))
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]


def write(folder: Path, name: str, issued: Issued) -> None:
    """Replaces both files; a reader who finds them halfway finds a pair that does not fit, and waits."""
    cert, key = files_of(folder, name)
    pem = serialization.Encoding.PEM
    secret = issued.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for path, data, mode in ((key, secret, 0o600), (cert, issued.cert.public_bytes(pem), 0o644)):
        with replacing(path, mode=mode) as file:
            file.write(data)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            try:
                names.append(x509.DNSName(host))
            except ValueError:
                raise click.BadParameter(
                    f"expected a name in ASCII or an address, got {host!r}", param_hint="--hostname"
                ) from None
    return names


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
