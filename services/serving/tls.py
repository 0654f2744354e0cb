"""TLS certificates from files, reloaded when they change.

A half-made change, such as a new certificate beside the old key, is not taken up before the files fit each other.
"""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from services.errors import TriptychError
from triptych._files import Stamp, read_file, stamp_of

log = logging.getLogger(__name__)


class CertificateError(TriptychError):
    reason = "CERTIFICATE"


@dataclass(frozen=True)
class Certificates:
    """What is in the files of one end of a connection, empty where there is none; `context` is for HTTP servers."""

    cert: bytes
    key: bytes
    ca: bytes
    context: ssl.SSLContext


class CertificateFiles:
    """A certificate with its key, and the authority that the other end's certificate must come from; all optional."""

    def __init__(self, cert: Path | None = None, key: Path | None = None, ca: Path | None = None) -> None:
        """Raises CertificateError when the files cannot be used."""
        if (cert is None) != (key is None):
            raise CertificateError("a certificate and its key go together: expected two files, got one")
        self.cert, self.key, self.ca = cert, key, ca
        self._stamps = self._stamp()
        self._certificates = self._read()
        self._complaint = ""

    def current(self) -> Certificates:
        """What is in the files; the same object until they change."""
        try:
            stamps = self._stamp()
            if stamps != self._stamps:
                self._certificates, self._stamps, self._complaint = self._read(), stamps, ""
                log.info("took up the changed certificate files")
        except CertificateError as error:
            if str(error) != self._complaint:  # said once, not with every connection
                log.error("the certificates stay as they were: %s", error)  # noqa: TRY400 - a file's fault, no bug's
            self._complaint = str(error)
        return self._certificates

    def _stamp(self) -> list[Stamp]:
        stamps = []
        for path in (self.cert, self.key, self.ca):
            if path is None:
                continue
            try:
                stamps.append(stamp_of(path.stat()))
            except OSError as error:
                raise CertificateError(f"cannot read {path}: {error.strerror}") from None
        return stamps

    def _read(self) -> Certificates:
        paths = (self.cert, self.key, self.ca)
        try:
            cert, key, ca = (read_file(path) if path is not None else b"" for path in paths)
        except OSError as error:
            raise CertificateError(f"cannot read {error.filename}: {error.strerror}") from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            if self.cert is not None:
                # Beside its use, nothing else in the standard library checks whether a key fits its certificate.
                context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise CertificateError(
                f"{self.cert} and {self.key} are no certificate in PEM with its key, or it has a password: {error}"
            ) from None
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:
            raise CertificateError(f"{self.ca} has no certificates in PEM: {error}") from None
        return Certificates(cert, key, ca, context)


def _no_password() -> bytes:
    # Left to itself, OpenSSL would ask the terminal.
    raise ValueError("it wants a password")


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """For a gRPC server; with `files.ca` it refuses peers without a client certificate of that authority."""
    latest = files.current()

    def fetch() -> Any:
        # gRPC asks at every new connection, on a thread of its own; None: as before.
        nonlocal latest
        if (certificates := files.current()) is latest:
            return None
        latest = certificates
        return _configuration(certificates)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(latest), fetch, require_client_authentication=files.ca is not None
    )


def _configuration(certificates: Certificates) -> Any:
    pairs = [(certificates.key, certificates.cert)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=certificates.ca or None)


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """For an HTTP server, with the rules of `server_credentials`."""

    def take_current(connection: ssl.SSLObject, _server_name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = files.current().context

    context = files.current().context
    # Called at the beginning of every handshake, also where the client names no server.
    context.sni_callback = take_current
    return context


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """For a channel; it trusts `certificates.ca` alone, or the world's authorities where there is none."""
    return grpc.ssl_channel_credentials(
        certificates.ca or None, certificates.key or None, certificates.cert or None
    )
