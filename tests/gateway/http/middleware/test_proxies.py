"""Behind a proxy: which caller it forwards, by which name and scheme, and whether it is believed."""

import httpx
import pytest

from gateway.access.authentication import Authentication
from gateway.http.context import RequestContext
from gateway.http.middleware.proxies import ProxyHeadersMiddleware, TrustedProxies
from gateway.http.server import serving_http
from tests.gateway.fake_stage import pipeline
from tests.gateway.http.painting import set_up


async def seen(headers, *, trusted=("127.0.0.1", "10.0.0.0/8"), peer="10.0.0.1", path="/v1/models"):
    """What the application receives of the caller."""
    found = {}

    async def app(scope, receive, send):
        found.update(scope)

    scope = {
        "type": "http",
        "client": (peer, 4711),
        "scheme": "http",
        "path": path,
        "root_path": "",
        "headers": [(b"host", b"inner:8080"), *((k.lower().encode(), v.encode()) for k, v in headers)],
    }
    await ProxyHeadersMiddleware(app, TrustedProxies.parse(trusted))(scope, None, None)
    return found["client"][0], found["scheme"], dict(found["headers"])[b"host"].decode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], ("10.0.0.1", "http", "inner:8080")),
        ([("X-Forwarded-For", "192.0.2.7")], ("192.0.2.7", "http", "inner:8080")),
        (
            [
                ("X-Forwarded-For", "192.0.2.7"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "a.example"),
            ],
            ("192.0.2.7", "https", "a.example"),
        ),
        ([("X-Forwarded-For", "6.6.6.6, 192.0.2.7")], ("192.0.2.7", "http", "inner:8080")),
        ([("X-Forwarded-For", "192.0.2.7, 10.0.0.9")], ("192.0.2.7", "http", "inner:8080")),
        (
            [("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-For", "10.0.0.9")],
            ("192.0.2.7", "http", "inner:8080"),
        ),
        ([("X-Forwarded-For", "[2001:db8::1]:99")], ("2001:db8::1", "http", "inner:8080")),
        ([("X-Forwarded-For", "unknown")], ("10.0.0.1", "http", "inner:8080")),
        ([("X-Forwarded-Proto", "gopher")], ("10.0.0.1", "http", "inner:8080")),
        (
            [("X-Forwarded-Host", "a.example"), ("X-Forwarded-Port", "8443")],
            ("10.0.0.1", "http", "a.example:8443"),
        ),
        (
            [("Forwarded", 'for=192.0.2.7;proto=https;host="a.example:8443"')],
            ("192.0.2.7", "https", "a.example:8443"),
        ),
        ([("Forwarded", 'for="[2001:db8::1]:4711";proto=https')], ("2001:db8::1", "https", "inner:8080")),
        ([("Forwarded", "for=6.6.6.6, for=192.0.2.7")], ("192.0.2.7", "http", "inner:8080")),
        (
            [("Forwarded", "for=192.0.2.7"), ("X-Forwarded-For", "6.6.6.6")],
            ("192.0.2.7", "http", "inner:8080"),
        ),
        ([("Forwarded", 'for="a, b";;;=')], ("10.0.0.1", "http", "inner:8080")),
        ([("Forwarded", "for=_hidden")], ("10.0.0.1", "http", "inner:8080")),
    ],
    ids=str,
)
async def test_what_a_trusted_proxy_states_is_believed(headers, expected):
    assert await seen(headers) == expected


async def test_nobody_else_is_believed():
    headers = [
        ("X-Forwarded-For", "192.0.2.7"),
        ("X-Forwarded-Host", "a.example"),
        ("Forwarded", "for=192.0.2.7"),
    ]
    assert await seen(headers, peer="203.0.113.1") == ("203.0.113.1", "http", "inner:8080")
    assert await seen(headers, trusted=()) == ("10.0.0.1", "http", "inner:8080")
    assert (await seen(headers, trusted=("*",), peer="203.0.113.1"))[0] == "192.0.2.7"


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match=r"such as 10\.0\.0\.5"):
        TrustedProxies.parse(["proxy.example"])


async def asked(headers, *, public_url="", trusted=(), hosts=(), path="/v1/images/generations"):
    async with pipeline() as gateway:
        await set_up(gateway)
        api = RequestContext(gateway.facade, Authentication(None), public_url=public_url)
        proxies = TrustedProxies.parse(trusted)
        async with serving_http(api, grace_s=1, hosts=hosts, proxies=proxies) as serving:
            url = f"http://{serving.address}"
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
                body = {"prompt": "x", "model": "dall-e-3"}
                return await http.post(path, json=body)


def link_of(answer):
    return answer.json()["data"][0]["url"]


async def test_links_have_the_address_that_the_proxy_was_asked_by():
    headers = {"x-forwarded-proto": "https", "x-forwarded-host": "pictures.example"}
    answer = await asked(headers, trusted=["127.0.0.1"], hosts=["pictures.example"])
    assert link_of(answer).startswith("https://pictures.example/images/")


async def test_links_have_the_prefix_that_the_proxy_takes_off():
    headers = {"x-forwarded-host": "a.example", "x-forwarded-prefix": "/art"}
    answer = await asked(headers, trusted=["127.0.0.1"], hosts=["a.example"])
    assert link_of(answer).startswith("http://a.example/art/images/")


async def test_a_public_url_is_where_links_lead_and_a_name_that_is_known():
    answer = await asked({"host": "pictures.example"}, public_url="https://pictures.example/art")
    assert link_of(answer).startswith("https://pictures.example/art/images/")


@pytest.mark.parametrize(
    ("hosts", "status"),
    [((), 421), (["gateway"], 200), ([".internal"], 421), (["*"], 200)],
)
async def test_a_name_must_be_known(hosts, status):
    assert (await asked({"host": "gateway:8080"}, hosts=hosts)).status_code == status


async def test_all_names_below_a_domain_can_be_known():
    answer = await asked({"host": "host.docker.internal:8080"}, hosts=[".docker.internal"])
    assert answer.status_code == 200


async def test_a_forwarded_name_of_a_stranger_opens_nothing():
    answer = await asked({"host": "evil.example", "x-forwarded-host": "localhost"})
    assert answer.status_code == 421
