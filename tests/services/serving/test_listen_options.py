"""Where a process may listen without a certificate, and that it does not by mistake."""

import pytest

from services.serving.listen_options import UnsafeAddress, check_address, is_loopback
from services.serving.stage_command import run_stage
from services.serving.stage_service import ServeOptions, StageService


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "127.1"])
def test_loopback_is_only_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "0", "10.0.0.7", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.7", "no.such.invalid"],
)
def test_all_else_is_open(host):
    assert not is_loopback(host)


def test_an_open_address_is_refused_with_the_options_that_are_missing():
    with pytest.raises(UnsafeAddress) as raised:
        check_address("0.0.0.0", options={"--tls-cert": "a", "--tokens": None}, insecure=False)
    assert "refused to listen on 0.0.0.0 without --tokens," in str(raised.value)
    assert "--insecure listens all the same" in str(raised.value)


@pytest.mark.parametrize(
    ("host", "options", "insecure"),
    [
        ("127.0.0.1", {"--tokens": None}, False),
        ("0.0.0.0", {"--tokens": "tokens.json"}, False),
        ("0.0.0.0", {"--tokens": None}, True),
    ],
)
def test_a_safe_address_is_not_refused(host, options, insecure):
    assert check_address(host, options=options, insecure=insecure) is None


def test_a_stage_does_not_load_before_it_refuses_to_listen_openly():
    options = ServeOptions(
        model="tiny",
        host="0.0.0.0",
        port=0,
        slots=1,
        max_queue=1,
        threads=1,
        device="cpu",
        grace=0,
        exit_with_parent=False,
        log_level="info",
    )
    with pytest.raises(UnsafeAddress, match="without --tls-cert and --tls-key and --tls-client-ca"):
        run_stage(
            StageService(),
            lambda service, server: None,
            lambda: pytest.fail("it has begun to load"),
            service_name="triptych.v1.GeneratorService",
            options=options,
        )
