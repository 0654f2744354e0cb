"""Webhooks at the end of runs: to whom they may be sent, signed as the page states, sent again, and after a restart."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from standardwebhooks import Webhook
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from gateway.command import serve
from gateway.journal.schema import webhooks
from gateway.webhooks.policy import AllowedUrls, ForbiddenAddress, WebhookPolicy, is_public
from gateway.webhooks.queue import WebhookQueue
from gateway.webhooks.sender import RETRY_DELAYS_S, WebhookSender
from gateway.webhooks.signing import InvalidWebhookSecret, WebhookSigner
from services.errors import AlreadyExists, InvalidRequest
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.run_fixtures import ALL, run_finished, spec
from tests.serving_app import serving_app

SKETCH = {"generate": {"count": 1}, "refine": None, "upscale": None}
SECRETS = ["whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "whsec_" + "YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNk"]
PAGE = Path(__file__).parents[3] / "docs" / "webhooks.md"


@dataclass
class Receiver:
    """Answers with these statuses in turn, then 204; keeps what it was sent."""

    url: str = ""
    answers: list[Response] = field(default_factory=list)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    has_received: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()

    async def take(request):
        made.received.append((dict(request.headers), await request.body()))
        made.has_received.set()
        return made.answers.pop(0) if made.answers else Response(status_code=204)

    async with serving_app(
        Starlette(routes=[Route("/hooks/{rest:path}", take, methods=["POST"])])
    ) as address:
        made.url = f"http://{address}/hooks/runs"
        yield made


@pytest.fixture
def signer(tmp_path: Path) -> WebhookSigner:
    (tmp_path / "secrets").write_text("# the old one and the new one\n" + "\n".join(SECRETS) + "\n")
    return WebhookSigner(tmp_path / "secrets")


def policy_for(receiver: Receiver, *, allows_private: bool = True) -> WebhookPolicy:
    return WebhookPolicy([AllowedUrls.parse(receiver.url)], allows_private)


@dataclass
class Scene:
    gateway: object
    sender: WebhookSender

    async def finished_run(self, url: str, **more):
        run = await self.gateway.facade.create_run("", spec(**SKETCH), ALL, webhook_url=url, **more)
        return await run_finished(self.gateway, run.name)

    async def row(self, name):
        query = sa.select(webhooks).where(webhooks.c.run == name)
        return await self.gateway.runs.journal.database.read(
            lambda connection: connection.execute(query).one()
        )

    async def make_due(self):
        later = sa.update(webhooks).values(next_ms=0)
        await self.gateway.runs.journal.database.write(lambda connection: connection.execute(later))


@asynccontextmanager
async def opened(folder: Path, policy: WebhookPolicy, signer: WebhookSigner):
    async with scripted_stages() as stages, gateway_over(stages, folder, webhooks=policy) as gateway:
        yield Scene(gateway, WebhookSender(WebhookQueue(gateway.runs.journal.database), policy, signer))


@pytest.fixture
async def scene(tmp_path: Path, receiver: Receiver, signer: WebhookSigner) -> AsyncIterator[Scene]:
    async with opened(tmp_path / "kept", policy_for(receiver), signer) as running:
        yield running


async def test_the_end_of_a_run_is_sent_once_signed_and_without_its_prompt(scene: Scene, receiver: Receiver):
    run = await scene.finished_run(receiver.url)
    await scene.sender.send_due()
    await scene.sender.send_due()

    ((headers, body),) = receiver.received
    for secret in SECRETS:
        Webhook(secret).verify(body, headers)
    content = json.loads(body)
    assert content["type"] == "run.finished"
    assert content["data"] == {
        "run": run.name,
        "request_id": "",
        "state": "SUCCEEDED",
        "create_time": content["data"]["create_time"],
        "end_time": content["timestamp"],
        "images": [f"{run.name}/images/generate-0"],
    }
    assert run.spec.prompt not in body.decode()


async def test_the_program_of_the_page_verifies_it(scene: Scene, receiver: Receiver):
    await scene.finished_run(receiver.url)
    await scene.sender.send_due()
    ((headers, body),) = receiver.received
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict = {}
    exec(program, names)

    names["verify"](SECRETS[1], headers, body)
    for wrong in (
        (SECRETS[0][:-4] + "AAAA", headers, body),
        (SECRETS[0], headers, body + b" "),
        (SECRETS[0], {**headers, "webhook-id": "msg_other"}, body),
        (SECRETS[0], {**headers, "webhook-timestamp": "1"}, body),
        (SECRETS[0], {**headers, "webhook-signature": "v1,"}, body),
    ):
        with pytest.raises(ValueError, match="no signature is right|too old"):
            names["verify"](*wrong)


@pytest.mark.parametrize(
    "answer",
    [Response(status_code=500), Response(status_code=302, headers={"location": "/hooks/other"})],
    ids=["error", "redirect"],
)
async def test_a_failed_one_is_sent_again_with_the_same_id(
    scene: Scene, receiver: Receiver, answer: Response
):
    receiver.answers = [answer]
    run = await scene.finished_run(receiver.url)
    await scene.sender.send_due()
    assert (await scene.row(run.name)).num_attempts == 1
    await scene.sender.send_due()
    assert len(receiver.received) == 1  # it is not due yet

    await scene.make_due()
    await scene.sender.send_due()
    first, second = (headers["webhook-id"] for headers, _ in receiver.received)
    assert first == second
    assert (await scene.row(run.name)).sent_end_ns is not None


async def test_a_receiver_that_is_gone_is_not_asked_again(scene: Scene, receiver: Receiver):
    receiver.answers = [Response(status_code=410)]
    await scene.finished_run(receiver.url)
    await scene.sender.send_due()
    await scene.make_due()
    await scene.sender.send_due()
    assert len(receiver.received) == 1


async def test_it_is_given_up_after_the_last_attempt(scene: Scene, receiver: Receiver, caplog):
    receiver.answers = [Response(status_code=503) for _ in range(len(RETRY_DELAYS_S) + 1)]
    await scene.finished_run(receiver.url)
    for _ in range(len(RETRY_DELAYS_S) + 3):
        await scene.make_due()
        await scene.sender.send_due()
    assert len(receiver.received) == len(RETRY_DELAYS_S) + 1
    assert "is given up after 10 attempts: it answered 503" in caplog.text
    assert "/hooks/" not in caplog.text


async def test_it_is_sent_after_a_restart(tmp_path: Path, receiver: Receiver, signer: WebhookSigner):
    policy = policy_for(receiver)
    async with opened(tmp_path / "kept", policy, signer) as before:
        run = await before.finished_run(receiver.url)
    assert not receiver.received
    async with opened(tmp_path / "kept", policy, signer) as after:
        await after.sender.send_due()
    assert json.loads(receiver.received[0][1])["data"]["run"] == run.name


async def test_one_that_another_gateway_takes_is_sent_once(scene: Scene, receiver: Receiver):
    await scene.finished_run(receiver.url)
    queue = WebhookQueue(scene.gateway.runs.journal.database)
    taken = await asyncio.gather(queue.take(), queue.take())
    assert sorted(map(len, taken)) == [0, 1]


async def test_a_run_that_goes_on_is_reported_at_its_next_end(scene: Scene, receiver: Receiver):
    run = await scene.finished_run(receiver.url)
    await scene.sender.send_due()
    refining = scene.gateway.client.select(f"{run.name}/images/generate-0", refine=1, show=False)
    async for _ in refining.until_it_rests():
        pass
    await scene.sender.send_due()
    first, second = receiver.received
    assert first[0]["webhook-id"] != second[0]["webhook-id"]
    assert len(json.loads(second[1])["data"]["images"]) == 2


async def test_a_run_that_is_deleted_sends_nothing(scene: Scene, receiver: Receiver):
    run = await scene.finished_run(receiver.url)
    await scene.gateway.facade.delete_run(run.name, ALL)
    await scene.sender.send_due()
    assert not receiver.received


async def test_the_sender_is_woken_by_the_end_of_a_run(scene: Scene, receiver: Receiver):
    scene.gateway.runs.on_finished = scene.sender.wake
    sending = asyncio.create_task(scene.sender.run_forever())
    await scene.finished_run(receiver.url)
    async with asyncio.timeout(60):
        await receiver.has_received.wait()
    sending.cancel()


async def test_an_address_that_is_not_public_is_refused_when_it_is_resolved(
    tmp_path: Path, receiver: Receiver, signer: WebhookSigner, caplog
):
    policy = policy_for(receiver, allows_private=False)
    async with opened(tmp_path / "kept", policy, signer) as running:
        await running.finished_run(receiver.url)
        await running.sender.send_due()
    assert not receiver.received
    assert "which is not public" in caplog.text


async def test_an_address_that_was_taken_off_the_list_gets_nothing(
    scene: Scene, receiver: Receiver, signer: WebhookSigner
):
    await scene.finished_run(receiver.url)
    other = WebhookPolicy([AllowedUrls.parse("https://example.org")], True)
    await WebhookSender(WebhookQueue(scene.gateway.runs.journal.database), other, signer).send_due()
    assert not receiver.received


async def test_an_address_that_is_not_allowed_makes_no_run(scene: Scene, receiver: Receiver):
    for url in ("http://example.org/", receiver.url + "2", "nonsense"):
        with pytest.raises(InvalidRequest, match="webhook_url"):
            await scene.gateway.facade.create_run("", spec(**SKETCH), ALL, webhook_url=url)
    assert not (await scene.gateway.facade.list_runs(ALL))[0]


async def test_a_repeated_request_with_another_address_is_refused(scene: Scene, receiver: Receiver):
    create = scene.gateway.facade.create_run
    await create("once", spec(**SKETCH), ALL, webhook_url=receiver.url)
    await create("once", spec(**SKETCH), ALL, webhook_url=receiver.url)
    with pytest.raises(AlreadyExists):
        await create("once", spec(**SKETCH), ALL, webhook_url=receiver.url + "/other")


@pytest.mark.parametrize(
    ("allowed", "url", "is_allowed"),
    [
        ("https://hooks.example.com/", "https://hooks.example.com/any", True),
        ("https://hooks.example.com/", "https://HOOKS.example.com:443/any?x=1", True),
        ("https://hooks.example.com", "https://hooks.example.com", True),
        ("https://hooks.example.com/a", "https://hooks.example.com/a/b", True),
        ("https://hooks.example.com/a", "https://hooks.example.com/ab", False),
        ("https://hooks.example.com/a", "https://hooks.example.com/a/../b", False),
        ("https://hooks.example.com/a", "https://hooks.example.com/a/%2e%2e/b", False),
        ("https://hooks.example.com/", "http://hooks.example.com/", False),
        ("https://hooks.example.com/", "https://hooks.example.com:8443/", False),
        ("https://hooks.example.com/", "https://user:secret@hooks.example.com/", False),
        ("https://hooks.example.com/", "https://hooks.example.com@evil.org/", False),
        ("https://hooks.example.com/", "https://hooks.example.com.evil.org/", False),
        ("https://hooks.example.com/", "https://hooks.example.com\\@evil.org/", False),
        ("https://hooks.example.com/", "https://hooks.example.com/#x", False),
        ("https://hooks.example.com/", "https://hooks.example.com/\r\nx", False),
        ("https://hooks.example.com/", "https://h\u00f6oks.example.com/", False),
        ("https://hooks.example.com/", "https://hooks.example.com/" + "a" * 3000, False),
        ("https://hooks.example.com/", "ftp://hooks.example.com/", False),
        ("https://hooks.example.com/", "https:///any", False),
        ("https://hooks.example.com/", "https://[::1/", False),
        ("https://*.example.com/", "https://a.b.example.com/", True),
        ("https://*.example.com/", "https://example.com/", False),
        ("https://*.example.com/", "https://evilexample.com/", False),
    ],
)
def test_what_an_allowed_prefix_allows(allowed: str, url: str, is_allowed: bool):
    policy = WebhookPolicy([AllowedUrls.parse(allowed)])
    if is_allowed:
        policy.check(url)
    else:
        with pytest.raises(InvalidRequest):
            policy.check(url)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "2002:7f00:1::",
        "64:ff9b::7f00:1",
    ],
)  # fmt: skip
def test_an_address_of_a_private_network_is_not_public(address: str):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_an_address_of_the_internet_is_public(address: str):
    assert is_public(ip_address(address))


async def test_numbers_that_stand_for_loopback_are_resolved_before_they_are_checked():
    policy = WebhookPolicy([AllowedUrls.parse("http://2130706433")])
    policy.check("http://2130706433/")
    with pytest.raises((ForbiddenAddress, OSError)):
        await policy.resolve("http://2130706433/")


def test_a_secret_can_be_replaced_while_the_gateway_runs(signer: WebhookSigner, tmp_path: Path):
    when = datetime.now(UTC)
    assert len(signer.headers("msg_1", when, "{}")["webhook-signature"].split()) == 2
    (tmp_path / "secrets").write_text(SECRETS[1] + "\n")
    assert len(signer.headers("msg_1", when, "{}")["webhook-signature"].split()) == 1
    (tmp_path / "secrets").write_text("whsec_short\n")
    assert len(signer.headers("msg_1", when, "{}")["webhook-signature"].split()) == 1


@pytest.mark.parametrize("content", ["", "# nothing\n", "whsec_c2hvcnQ=\n", "no prefix\n", "whsec_!!!\n"])
def test_a_file_without_a_usable_secret_is_refused_and_not_quoted(tmp_path: Path, content: str):
    (tmp_path / "secrets").write_text(content)
    with pytest.raises(InvalidWebhookSecret) as raised:
        WebhookSigner(tmp_path / "secrets")
    assert content.strip() == "" or content.strip() not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--webhook-allow", "https://example.com"], "need each other"),
        (["--webhook-allow", "nonsense", "--webhook-secret-file", "{secrets}"], "expected https://HOST/PATH"),
        (["--webhook-allow", "https://e/?q", "--webhook-secret-file", "{secrets}"], "without a query"),
    ],
)
def test_options_that_cannot_be_used_are_wrong_usage(arguments, message, signer, tmp_path: Path):
    done = CliRunner().invoke(serve, [one.format(secrets=tmp_path / "secrets") for one in arguments])
    assert done.exit_code == 2
    assert message in done.output
