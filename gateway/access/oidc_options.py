"""Options of `triptych serve gateway` for an OpenID provider."""

from collections.abc import Callable
from typing import Any

import click

from gateway.access.oidc import ALGORITHMS, DEFAULT_ALGORITHMS, OidcOptions, OidcVerifier

_OPTIONS = (
    click.option(
        "--oidc-issuer",
        metavar="URL",
        default="",
        help="Accept JWTs of this OpenID provider as tokens, beside --tokens. Its discovery document names its keys.",
    ),
    click.option(
        "--oidc-audience",
        multiple=True,
        help="What a JWT must be made for; repeat it for more. Required with the issuer.",
    ),
    click.option(
        "--oidc-jwks-url", metavar="URL", default="", help="Where its keys are.  [default: as discovered]"
    ),
    click.option(
        "--oidc-algorithm",
        type=click.Choice(ALGORITHMS),
        multiple=True,
        default=DEFAULT_ALGORITHMS,
        show_default=True,
        help="A signature algorithm that is accepted; repeat it for more.",
    ),
    click.option(
        "--oidc-caller-claim", default="sub", show_default=True, help="The claim that names the caller."
    ),
    click.option(
        "--oidc-sees-all",
        metavar="CLAIM=VALUE",
        default="",
        help="Callers whose claim is VALUE, or a list with it, see all runs.  [default: nobody]",
    ),
    click.option(
        "--oidc-clock-skew",
        type=click.FloatRange(0, 600),
        default=60.0,
        show_default=True,
        help="Seconds by which the provider's clock may differ.",
    ),
)


def oidc_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; `oidc_verifier_of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def oidc_verifier_of(values: dict[str, Any]) -> OidcVerifier | None:
    """None without an issuer. Raises UsageError."""
    issuer = values["oidc_issuer"]
    if not issuer:
        if values["oidc_audience"] or values["oidc_jwks_url"]:
            raise click.UsageError("--oidc-audience and --oidc-jwks-url need --oidc-issuer beside them")
        return None
    claim, equals, value = values["oidc_sees_all"].partition("=")
    if values["oidc_sees_all"] and not (claim and equals and value):
        raise click.UsageError(f"--oidc-sees-all: expected CLAIM=VALUE, got {values['oidc_sees_all']!r}")
    try:
        return OidcVerifier(
            OidcOptions(
                issuer,
                values["oidc_audience"],
                values["oidc_jwks_url"],
                values["oidc_algorithm"],
                values["oidc_caller_claim"],
                values["oidc_clock_skew"],
                (claim, value) if claim else None,
            )
        )
    except ValueError as error:
        raise click.UsageError(f"--oidc-issuer: {error}") from None
