"""Whatever goes wrong is shown at once, in plain words, with what to do next, and without losing what was written."""

import json
import re

import pytest
from playwright.async_api import expect

from tests.web.gateway_process import ROOT
from tests.web.visitor import open_page

FAILED_REQUEST = r"Failed to load resource|net::ERR_"


def answer(status: int, reason: str, message: str = "10.0.0.7:50051 said no", **headers: str) -> dict:
    body = {"error": {"reason": reason, "message": message, "violations": {}}}
    return {
        "status": status,
        "content_type": "application/json",
        "headers": headers,
        "body": json.dumps(body),
    }


CASES = [
    (503, "NO_WORKER", "no generator at 10.0.0.7:50051 is healthy", "triptych serve generator"),
    (429, "RATE_LIMITED", "", "as many runs as you may have at once"),
    (429, "QUEUE_FULL", "", "no room for another run"),
    (503, "STORE_FULL", "", "disk is full"),
    (503, "JOURNAL_FAILED", "", "Nothing was begun"),
    (503, "STORAGE_FAILED", "", "storage is lost, damaged or full"),
    (500, "INTERNAL", "", "Internal error in the gateway"),
    (418, "SOMETHING_NEW", "http://10.0.0.7:50051/x went away", "A worker went away"),
]


# Their message is all that can be said.
IN_THEIR_OWN_WORDS = {"INVALID_ARGUMENT", "UNIMPLEMENTED"}


def test_every_reason_of_the_protocol_is_said_in_both_languages():
    table = (
        (ROOT / "docs/protocol.md")
        .read_text("utf-8")
        .partition("\n## Errors\n")[2]
        .partition("\n\nA message")[0]
    )
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    reasons = {reason for cell in cells for reason in re.findall(r"[A-Z_]{3,}", cell)} - IN_THEIR_OWN_WORDS
    assert len(reasons) > 20
    texts = (ROOT / "gateway/web/texts.js").read_text("utf-8")
    assert {reason for reason in reasons if f'"error.{reason}": [' not in texts} == set()


@pytest.mark.parametrize(("status", "reason", "message", "words"), CASES)
async def test_a_refusal_is_said_in_words_and_the_prompt_stays(visitor, status, reason, message, words):
    visitor.expected.append(FAILED_REQUEST)
    refused = answer(status, reason, message, **{"retry-after": "7"})
    await visitor.page.route(
        "**/runs",
        lambda route: route.fulfill(**refused) if route.request.method == "POST" else route.fallback(),
    )
    await visitor.prompt.fill("a red house")
    await visitor.button("Make pictures").click()
    await expect(visitor.errors).to_contain_text(words)
    await expect(visitor.errors).not_to_contain_text("10.0.0.7")
    await expect(visitor.prompt).to_have_value("a red house")
    await visitor.page.unroute("**/runs")
    await visitor.errors.get_by_role("button", name="Try again").click()
    await visitor.sees_sketches(8)
    await expect(visitor.errors).to_be_empty()


async def test_a_gateway_that_is_away_is_said_before_the_first_wait_is_over(visitor):
    visitor.expected.append(FAILED_REQUEST)
    await visitor.page.route("**/runs", lambda route: route.abort("connectionrefused"))
    await visitor.prompt.fill("a red house")
    await visitor.button("Make pictures").click()
    await expect(visitor.errors).to_contain_text("The gateway does not answer")
    await expect(visitor.errors).to_contain_text("Trying again")
    await visitor.page.unroute("**/runs")
    await visitor.sees_sketches(8)
    await expect(visitor.errors).to_be_empty()


@pytest.mark.parametrize(("status", "reason"), [(401, "TOKEN_MISSING"), (403, "TOKEN_UNKNOWN")])
async def test_a_token_that_is_missing_or_has_expired_is_asked_for_in_the_middle(visitor, status, reason):
    visitor.expected.append(FAILED_REQUEST)
    await visitor.page.route("**/runs", lambda route: route.fulfill(**answer(status, reason)))
    await visitor.prompt.fill("a red house")
    await visitor.button("Make pictures").click()
    await visitor.page.get_by_label("Token (kept").fill("tt_another")
    await visitor.page.unroute("**/runs")
    await visitor.button("Use it").click()
    await visitor.sees_sketches(8)
    await expect(visitor.prompt).to_have_value("a red house")


async def test_a_refused_action_can_be_tried_again(visitor):
    visitor.expected.append(FAILED_REQUEST)
    await visitor.begin(count=1)
    await visitor.sees_sketches(1)
    await visitor.pick("generate", 0)
    await visitor.page.route(
        "**/selections", lambda route: route.fulfill(**answer(503, "NO_WORKER", "no refiner"))
    )
    await visitor.act("Refine")
    await expect(visitor.errors).to_contain_text("triptych serve refiner")
    await visitor.page.unroute("**/selections")
    await visitor.errors.get_by_role("button", name="Try again").click()
    await visitor.sees("refine", 4)


async def test_the_first_screen_is_small_and_compressed(browser, gateway):
    visitor = await open_page(browser, gateway.url)
    sizes = []
    session = await visitor.page.context.new_cdp_session(visitor.page)
    await session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    await visitor.arrive()
    assert sum(sizes) < 100_000
    loaded = await visitor.page.request.get(gateway.url + "web/texts.js")
    assert loaded.headers["content-encoding"] == "gzip"
