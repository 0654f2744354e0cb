"""Options of `triptych serve gateway` for webhooks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gateway.webhooks.policy import AllowedUrls, WebhookPolicy
from gateway.webhooks.signing import WebhookSigner


@dataclass(frozen=True)
class WebhookOptions:
    policy: WebhookPolicy
    signer: WebhookSigner


_OPTIONS = (
    click.option(
        "--webhook-allow",
        multiple=True,
        metavar="URL",
        help="Runs may have webhooks sent to URLs that begin with it, such as https://hooks.example.com/ or "
        "https://*.example.com/triptych; repeat it for more.  [default: no webhooks]",
    ),
    click.option(
        "--webhook-secret-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Secrets that sign webhooks, one a line (whsec_...); read again when it changes. Required with --webhook-allow.",
    ),
    click.option(
        "--webhook-allow-private",
        is_flag=True,
        help="Also send webhooks to addresses that are not public: loopback, private networks.",
    ),
)


def webhook_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; `webhook_options_of` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def webhook_options_of(values: dict[str, Any]) -> WebhookOptions | None:
    """None where no webhooks are allowed. Raises UsageError, and InvalidWebhookSecret."""
    texts, secrets = values["webhook_allow"], values["webhook_secret_file"]
    if bool(texts) != bool(secrets):
        raise click.UsageError("--webhook-allow and --webhook-secret-file need each other")
    if not texts:
        return None
    try:
        allowed = [AllowedUrls.parse(text) for text in texts]
    except ValueError as error:
        raise click.UsageError(f"--webhook-allow: {error}") from None
    return WebhookOptions(WebhookPolicy(allowed, values["webhook_allow_private"]), WebhookSigner(secrets))
