"""Sends webhooks at the end of runs: signed, to allowed addresses, again after failures, also after a restart."""

import asyncio
import json
import logging
import random
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
from prometheus_client import CollectorRegistry, Counter

from gateway.journal.database import JournalUnavailable
from gateway.webhooks.policy import ForbiddenAddress, WebhookPolicy
from gateway.webhooks.queue import DueWebhook, WebhookQueue
from gateway.webhooks.signing import WebhookSigner
from services.errors import InvalidRequest
from triptych import __version__

log = logging.getLogger(__name__)

# Also without being woken: other gateways' runs, and attempts that are due again.
LOOK_EVERY_S = 5.0
# The end of a run is in the journal a moment after it happens.
COMMIT_S = 0.1
TIMEOUT_S = 15.0
# Seconds before each further attempt: a little over a day in all.
RETRY_DELAYS_S = (5, 30, 120, 600, 1800, 3600, 10_800, 21_600, 43_200)
MAX_RETRY_AFTER_S = 3600
GONE = 410


class WebhookSender:
    """`run_forever` sends; `wake` has it look at once."""

    def __init__(
        self,
        queue: WebhookQueue,
        policy: WebhookPolicy,
        signer: WebhookSigner,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._queue = queue
        self._policy = policy
        self._signer = signer
        self._has_news = asyncio.Event()
        self._sent = Counter(
            "triptych_webhooks",
            "Attempts to send a webhook, by outcome.",
            ["outcome"],
            registry=registry or CollectorRegistry(),
        )
        # Made once: it reads the system's authorities.
        self._tls = ssl.create_default_context()

    def wake(self) -> None:
        self._has_news.set()

    async def run_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._has_news.wait()
                self._has_news.clear()
                await asyncio.sleep(COMMIT_S)
            try:
                await self.send_due()
            except JournalUnavailable:
                continue  # the journal itself reports it
            except Exception:  # one bug must not end all webhooks
                log.exception("webhooks could not be sent")

    async def send_due(self) -> None:
        """Sends what is due now."""
        while due := await self._queue.take():
            await asyncio.gather(*(self._send(one) for one in due))

    async def _send(self, webhook: DueWebhook) -> None:
        problem, retry_after_s, is_final = "", 0.0, False
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status, retry_after_s = await self._post(webhook)
            is_final = status == GONE
            problem = "" if 200 <= status < 300 else f"it answered {status}"
        except TimeoutError:
            problem = f"no answer within {TIMEOUT_S:g} s"
        except ForbiddenAddress as error:
            problem, is_final = str(error), True
        except (OSError, httpx.HTTPError, ssl.SSLError, UnicodeError) as error:
            problem = f"{type(error).__name__}: {error}"
        # Its path and query may hold a secret of the receiver.
        host = urlsplit(webhook.url).hostname
        about = {
            "run": webhook.run.name,
            "host": host,
            "webhook_id": webhook.id,
            "attempt": webhook.num_attempts + 1,
        }
        if not problem:
            self._sent.labels("delivered").inc()
            log.info(
                "the webhook of %s was sent to %s",
                webhook.run.name,
                host,
                extra={"event": "webhook_sent", **about},
            )
            await self._queue.finish(webhook)
        elif is_final or webhook.num_attempts >= len(RETRY_DELAYS_S):
            self._sent.labels("given_up").inc()
            log.error(
                "the webhook of %s to %s is given up after %d attempts: %s",
                webhook.run.name,
                host,
                webhook.num_attempts + 1,
                problem,
                extra={"event": "webhook_given_up", **about},
            )
            await self._queue.finish(webhook)
        else:
            self._sent.labels("failed").inc()
            # Receivers that were away must not be visited by all at once.
            delay_s = max(RETRY_DELAYS_S[webhook.num_attempts] * random.uniform(0.8, 1.2), retry_after_s)  # noqa: S311 - no secret
            log.warning(
                "the webhook of %s to %s failed and is sent again in %.0f s: %s",
                webhook.run.name,
                host,
                delay_s,
                problem,
                extra={"event": "webhook_failed", **about},
            )
            await self._queue.postpone(webhook, delay_s)

    async def _post(self, webhook: DueWebhook) -> tuple[int, float]:
        """The status, and the seconds after which the receiver wants to be asked again."""
        self._check_still_allowed(webhook.url)
        body = json.dumps(webhook.content(), separators=(",", ":"))
        url = httpx.URL(webhook.url)
        address = await self._policy.resolve(webhook.url)
        headers = {
            **self._signer.headers(webhook.id, datetime.now(UTC), body),
            "content-type": "application/json",
            "user-agent": f"triptych/{__version__}",
            "host": url.netloc.decode(),
        }
        # To the address that was checked; the certificate must be of the name. No proxy: it would resolve the name anew.
        async with (
            httpx.AsyncClient(
                verify=self._tls, timeout=TIMEOUT_S, follow_redirects=False, trust_env=False
            ) as http,
            http.stream(
                "POST",
                url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": url.host},
            ) as response,
        ):
            # The body of the answer is not read.
            return response.status_code, _retry_after_s(response.headers.get("retry-after", ""))

    def _check_still_allowed(self, url: str) -> None:
        """The operator may have taken an address off the list since the run was accepted."""
        try:
            self._policy.check(url)
        except InvalidRequest as error:
            raise ForbiddenAddress(str(error)) from None


def _retry_after_s(text: str) -> float:
    return float(min(int(text), MAX_RETRY_AFTER_S)) if text.isdecimal() and len(text) < 9 else 0.0
