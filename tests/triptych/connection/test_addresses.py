"""Addresses of gateways as people write them, and when a proxy is between."""

import pytest

from triptych.addresses import check_address, proxy_for
from triptych.credentials import Credentials


@pytest.mark.parametrize(
    ("text", "target", "is_encrypted"),
    [
        ("127.0.0.1:50050", "127.0.0.1:50050", False),
        ("gateway:50050", "gateway:50050", False),
        ("[::1]:50050", "[::1]:50050", False),
        ("https://a.example", "a.example:443", True),
        ("https://a.example:8443/", "a.example:8443", True),
        ("HTTPS://a.example", "a.example:443", True),
        ("http://127.0.0.1:50050", "127.0.0.1:50050", False),
        ("unix:/run/triptych.sock", "unix:/run/triptych.sock", False),
        ("dns:///gateway.example:50050", "dns:///gateway.example:50050", False),
        ("127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", False),
        ("[::1]:1, [::1]:2", "ipv6:[::1]:1,[::1]:2", False),
        (" 127.0.0.1:50050 ", "127.0.0.1:50050", False),
    ],
)
def test_an_address_is_read(text, target, is_encrypted):
    address = check_address(text)
    assert (address.to_target(), address.is_encrypted) == (target, is_encrypted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost", "expected a port, such as localhost:50050"),
        ("127.0.0.1:500500", "a port from 1 to 65535"),
        ("127.0.0.1:0", "a port from 1 to 65535"),
        ("127.0.0.1:http", "a port from 1 to 65535"),
        ("127.0.0.1:٣", "a port from 1 to 65535"),
        ("::1:50050", "IPv6 in brackets"),
        ("[::1]", "expected a port"),
        ("[::1:50050", r"\[IPV6\]:PORT"),
        ("[house]:50050", r"\[IPV6\]:PORT"),
        ("", "HOST:PORT"),
        (":50050", "HOST:PORT"),
        ("a b:50050", "HOST:PORT"),
        ("ftp://a:1", "https://HOST:PORT"),
        ("https://a:1/v1", "without a path"),
        ("https://ann:secret@a:1", "without a user"),
        ("unix:", "unix:PATH"),
        ("dns:///", "dns:///NAME:PORT"),
        ("127.0.0.1:1,", "HOST:PORT"),
        ("a\x1b[31m:1", "HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is(text, words):
    with pytest.raises(ValueError, match=words) as raised:
        check_address(text)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x", "127.9.9.9:1,localhost:2"]
)
def test_no_proxy_is_for_this_machine(text, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert check_address(text).is_loopback
    assert proxy_for(check_address(text)) == ""


def test_the_proxy_that_is_tried_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://ann:secret@proxy.example:3128")
    address = check_address("gateway.example:50050")
    assert proxy_for(address) == "http://proxy.example:3128 (http_proxy)"
    monkeypatch.setenv("no_proxy", ".example")
    assert proxy_for(address) == ""


@pytest.mark.parametrize("token", ["a\nb", "bé", "a b", "\x00"])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(ValueError, match="printable ASCII"):
        Credentials(token)


def test_the_end_of_a_token_s_line_is_left_out():
    assert Credentials("abc\n").token == "abc"
