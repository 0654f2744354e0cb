"""TLS and token of a client."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc

from triptych._files import Stamp, read_file, stamp_of
from triptych.addresses import check_address

Stub = TypeVar("Stub")


@dataclass(frozen=True)
class Credentials:
    """What a caller shows and trusts. The files are PEM; `cert` and `key` are for gateways that ask for certificates.

    TLS is used where there is an authority, `ca`, or the address begins with https://; then the world's authorities are
    trusted where there is no `ca`.
    """

    # Not shown where somebody prints the object.
    token: str = field(default="", repr=False)
    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a token that no header can carry; white space around it, as of a file, is left out."""
        token = self.token.strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError(
                "token: expected printable ASCII characters without spaces, as `triptych tokens add` prints them; got "
                "others (is it a whole line of the file, and the right one?)"
            )
        object.__setattr__(self, "token", token)

    def open_channel(self, address: str, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """A channel to an address as triptych/addresses.py has it; it goes through no proxy to loopback.

        Raises ValueError for an address that is none, and OSError for a file that cannot be read.
        """
        checked = check_address(address)
        target, more = checked.to_target(), list(options)
        if checked.is_loopback:
            more.append(("grpc.enable_http_proxy", 0))
        if not self.is_encrypted(address):
            return grpc.aio.insecure_channel(target, options=more)
        if len(checked.hosts) > 1:
            # Their certificate is for the name, and gRPC is given numbers.
            more.append(("grpc.ssl_target_name_override", checked.hosts[0][0]))
        return grpc.aio.secure_channel(target, self.for_channel(), options=more)

    def is_encrypted(self, address: str) -> bool:
        """Whether TLS is used with the server at that address."""
        return self.ca is not None or check_address(address).is_encrypted

    def for_channel(self) -> grpc.ChannelCredentials:
        """The certificates, as grpc wants them."""
        ca, key, cert = (
            read_file(Path(path)) if path is not None else None for path in (self.ca, self.key, self.cert)
        )
        return grpc.ssl_channel_credentials(ca, key, cert)

    def stamps(self, address: str) -> list[Stamp]:
        """Changes whenever a file does that a channel to the address is opened with; raises OSError without the file."""
        if not self.is_encrypted(address):
            return []
        return [stamp_of(Path(path).stat()) for path in (self.ca, self.cert, self.key) if path is not None]

    def authorize(self, stub: Stub) -> Stub:
        """Has every call of the stub bring the token, if there is one."""
        # gRPC's own call credentials would refuse a gateway on loopback, which needs no TLS.
        if self.token:
            metadata = (("authorization", f"Bearer {self.token}"),)
            for name, method in vars(stub).items():
                setattr(stub, name, partial(method, metadata=metadata))
        return stub
