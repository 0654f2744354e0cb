"""What the `authorization` header makes of a call, and the file that lists who may call."""

import json
import logging
import os

import pytest

from gateway.access.authentication import Authentication
from gateway.access.caller import Caller, CallerLimits
from gateway.access.token_file import TokenFileError, new_token, read_tokens, write_tokens
from services.errors import PermissionDenied, Unauthenticated

ALICE = Caller("alice", limits=CallerLimits(max_running_runs=2))
BOB = Caller("bob", sees_all=True)


@pytest.fixture
def kept(tmp_path):
    """A file with a token of Alice and one of Bob, and these tokens by name."""
    tokens, entries = {}, []
    for caller in (ALICE, BOB):
        tokens[caller.name], entry = new_token(caller)
        entries.append(entry)
    write_tokens(tmp_path / "tokens.json", entries)
    return tmp_path / "tokens.json", tokens


def test_a_token_is_its_callers(kept):
    path, tokens = kept
    authentication = Authentication(path)
    assert authentication.authenticate(f"Bearer {tokens['alice']}") == ALICE
    assert authentication.authenticate(f"bearer  {tokens['bob']} ") == BOB


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic YWxpY2U6eA==", "triptych_x"])
def test_a_call_without_a_token_is_unauthenticated(kept, header):
    with pytest.raises(Unauthenticated, match="authorization: Bearer TOKEN"):
        Authentication(kept[0]).authenticate(header)


@pytest.mark.parametrize("token", ["triptych_wrong", "x" * 100_000, "é", "\udcff", "a b"])
def test_a_token_that_is_not_in_the_file_is_denied(kept, token):
    with pytest.raises(PermissionDenied) as raised:
        Authentication(kept[0]).authenticate(f"Bearer {token}")
    assert token not in str(raised.value)


def test_the_hash_of_a_token_is_no_token(kept):
    sha256 = read_tokens(kept[0])[0].sha256
    with pytest.raises(PermissionDenied):
        Authentication(kept[0]).authenticate(f"Bearer {sha256}")


def test_without_a_file_everybody_may_call_and_sees_all():
    caller = Authentication().authenticate(None, peer="ipv4:10.0.0.7")
    assert caller == Caller("ipv4:10.0.0.7", sees_all=True)


def test_a_revoked_token_is_denied_with_the_next_call(kept):
    path, tokens = kept
    authentication = Authentication(path)
    authentication.authenticate(f"Bearer {tokens['alice']}")
    write_tokens(path, [entry for entry in read_tokens(path) if entry.caller != ALICE])
    with pytest.raises(PermissionDenied):
        authentication.authenticate(f"Bearer {tokens['alice']}")
    assert authentication.authenticate(f"Bearer {tokens['bob']}") == BOB


def test_a_file_that_breaks_leaves_the_tokens_as_they_were(kept, caplog):
    path, tokens = kept
    authentication = Authentication(path)
    path.write_text("{")
    for _ in range(2):
        assert authentication.authenticate(f"Bearer {tokens['alice']}") == ALICE
    problems = [record.levelname for record in caplog.records if record.levelno >= logging.WARNING]
    assert problems == ["ERROR"]


def test_a_file_that_is_mended_is_taken_up(kept):
    path, tokens = kept
    authentication = Authentication(path)
    whole = path.read_text()
    path.unlink()
    authentication.authenticate(f"Bearer {tokens['alice']}")
    path.write_text(whole.replace('"alice"', '"carol"'))
    assert authentication.authenticate(f"Bearer {tokens['alice']}").name == "carol"


def test_a_missing_file_explains_how_to_make_it(tmp_path):
    with pytest.raises(TokenFileError, match="make it with `triptych tokens add`"):
        Authentication(tmp_path / "tokens.json")


def test_the_file_holds_no_token_and_is_its_owners_alone(kept):
    path, tokens = kept
    assert all(token not in path.read_text() for token in tokens.values())
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["tokens.json"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda alice: alice.update(sees_al=True), "expected only limits, sees_all, tokens, got 'sees_al'"),
        (lambda alice: alice.update(sees_all="no"), "expected true or false, got 'no'"),
        (lambda alice: alice["limits"].update(max_runs=1), "got 'max_runs'"),
        (lambda alice: alice["limits"].update(max_running_runs=-1), "at least 0, got -1"),
        (lambda alice: alice["limits"].update(max_running_runs=True), "at least 0, got True"),
        (lambda alice: alice["tokens"][0].update(sha256="secret"), "64 hexadecimal digits"),
        (lambda alice: alice.pop("tokens"), "'tokens'"),
    ],
)
def test_a_file_with_a_mistake_is_refused_with_its_place(kept, change, complaint):
    path, _ = kept
    content = json.loads(path.read_text())
    change(content["callers"]["alice"])
    path.write_text(json.dumps(content))
    with pytest.raises(TokenFileError, match=complaint):
        read_tokens(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"callers": []}', '{"callers": {"": {"tokens": []}}}']
)
def test_what_is_no_file_of_tokens_is_refused(tmp_path, content):
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(TokenFileError, match=r"is no file of tokens \(.+\); mend it, or write another one"):
        read_tokens(tmp_path / "tokens.json")


@pytest.mark.parametrize("name", ["", "ipv4:10.0.0.7", "a b", "-x", "x" * 65, "é"])
def test_a_name_that_could_be_an_address_or_more_is_refused(name):
    with pytest.raises(ValueError, match="a caller's name has 1 to 64"):
        new_token(Caller(name))
