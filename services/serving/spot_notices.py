"""Polls EC2's metadata service (IMDSv2) for spot termination notices.

The notice comes about two minutes ahead. A worker that hears it takes nothing new and finishes what it can; what it
cannot finish is made elsewhere. https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import asyncio
import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass

log = logging.getLogger(__name__)

EC2_METADATA = "http://169.254.169.254"
ASK_EVERY_S = 5.0
TIMEOUT_S = 2.0
TOKEN_TTL_S = 21_600


@dataclass(frozen=True)
class Notice:
    """What the machine's owner will do with it ("terminate", "stop" or "hibernate"), and when, in their words."""

    action: str
    time: str


class SpotNotices:
    """Asks one metadata service. Blocking work is done on threads."""

    def __init__(self, address: str = EC2_METADATA) -> None:
        self._address = address.rstrip("/")
        self._token = ""
        self._is_silent = False

    async def wait(self) -> Notice:
        """Returns once there is a notice; until then it asks every few seconds, also a service that does not answer."""
        while True:
            try:
                notice = await asyncio.to_thread(self.ask)
            except OSError as error:
                if not self._is_silent:
                    log.warning("%s gives no spot notices: %s; asking again", self._address, error)
                self._is_silent = True
            else:
                self._is_silent = False
                if notice is not None:
                    return notice
            await asyncio.sleep(ASK_EVERY_S)

    def ask(self) -> Notice | None:
        """The notice, if there is one now. Raises OSError when nobody answers."""
        try:
            answer = self._get("/latest/meta-data/spot/instance-action")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 401:  # the token has run out, or there was none yet
                self._token = ""
                return None
            if error.code == 404:
                return None
            raise
        try:
            notice = json.loads(answer)
            return Notice(str(notice["action"]), str(notice["time"]))
        except (ValueError, KeyError, TypeError):
            # Something is there, and only a notice ever is.
            return Notice("terminate", "soon")

    def _get(self, path: str) -> bytes:
        if not self._token:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
            self._token = self._open("/latest/api/token", "PUT", ttl).decode()
        return self._open(path, "GET", {"X-aws-ec2-metadata-token": self._token})

    def _open(self, path: str, method: str, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(self._address + path, method=method, headers=headers)  # noqa: S310 - http, from an option
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            body: bytes = answer.read(4096)
            return body
