"""Signs webhooks as Standard Webhooks has it: https://www.standardwebhooks.com."""

import base64
import binascii
import logging
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from services.errors import TriptychError
from triptych._files import Stamp, read_file, stamp_of

log = logging.getLogger(__name__)

PREFIX = "whsec_"
# Of the specification: 24 to 64 bytes.
MIN_BYTES, MAX_BYTES = 24, 64
MAX_FILE_BYTES = 64 * 2**10


class InvalidWebhookSecret(TriptychError):
    reason = "WEBHOOK_SECRET"


class WebhookSigner:
    """The secrets of a file, one a line; each webhook is signed with all of them, so that one can be replaced."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidWebhookSecret."""
        self._path = path
        self._stamp, self._secrets = _read(path)

    def headers(self, webhook_id: str, when: datetime, body: str) -> dict[str, str]:
        """The three headers of the scheme. A changed file is read again; one that cannot be used changes nothing."""
        try:
            if stamp_of(self._path.stat()) != self._stamp:
                self._stamp, self._secrets = _read(self._path)
        except (OSError, InvalidWebhookSecret) as error:
            log.error("the secrets of webhooks stay as they were: %s", error)  # noqa: TRY400 - a file's fault
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(when.astimezone(UTC).timestamp())),
            "webhook-signature": " ".join(one.sign(webhook_id, when, body) for one in self._secrets),
        }


def _read(path: Path) -> tuple[Stamp, list[Webhook]]:
    try:
        status = path.stat()
        if not path.is_file() or status.st_size > MAX_FILE_BYTES:
            raise InvalidWebhookSecret(f"expected a file with secrets of webhooks, got {path}")
        lines = [line.strip() for line in read_file(path).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidWebhookSecret(f"cannot read the secrets of webhooks in {path}: {error}") from None
    secrets = [line for line in lines if line and not line.startswith("#")]
    if not secrets:
        raise InvalidWebhookSecret(f"{path} has no secret; make one: echo whsec_$(openssl rand -base64 32)")
    return stamp_of(status), [_webhook(line, path) for line in secrets]


def _webhook(secret: str, path: Path) -> Webhook:
    try:
        num_bytes = len(base64.b64decode(secret.removeprefix(PREFIX), validate=True))
    except binascii.Error:
        num_bytes = 0
    if not secret.startswith(PREFIX) or not MIN_BYTES <= num_bytes <= MAX_BYTES:
        # The line is not quoted: it may be most of a secret.
        raise InvalidWebhookSecret(
            f"{path}: expected lines of {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64; make one: echo "
            "whsec_$(openssl rand -base64 32)"
        )
    return Webhook(secret)
