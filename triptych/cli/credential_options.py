"""Options for tokens and certificates of all commands that call a gateway."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from triptych._reconnect import Backoff
from triptych.addresses import check_address
from triptych.credentials import Credentials


class AddressType(click.ParamType[str, str]):
    """The address of one gateway or of several."""

    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_address(value).text
        except ValueError as error:
            self.fail(str(error), param, ctx)


def patience(address: str) -> Backoff:
    """How long a command retries: a port of this machine that nobody listens on is reported at once."""
    if check_address(address).is_loopback:
        return Backoff(connect_within_s=0)
    return Backoff()


ADDRESS = AddressType()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def credential_options(command: Callable[..., None]) -> Callable[..., None]:
    """--token, --ca, --cert and --key, which arrive as one `credentials: Credentials`."""

    @wraps(command)
    def gather(*, token: str, ca: Path | None, cert: Path | None, key: Path | None, **values: Any) -> None:
        if (cert is None) != (key is None):
            raise click.UsageError("--cert and --key go together")
        try:
            credentials = Credentials(token, ca, cert, key)
        except ValueError as error:
            raise click.UsageError(f"--{error} (option --token, or TRIPTYCH_TOKEN)") from None
        command(credentials=credentials, **values)

    decorated: Callable[..., None] = gather
    for option in (
        click.option("--key", type=FILE, help="The key of --cert."),
        click.option("--cert", type=FILE, help="Your client certificate, for a gateway that requires one."),
        click.option("--ca", type=FILE, help="Authority of the gateway's certificate; turns on TLS."),
        click.option("--token", default="", show_default=False, help="Your token. Prefer TRIPTYCH_TOKEN: `ps` shows command lines."),
    ):  # fmt: skip
        decorated = option(decorated)
    return decorated
