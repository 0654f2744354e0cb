"""Any header in place of a token, and any file in place of the tokens."""

import json

import pytest
from hypothesis import given, strategies as st

from gateway.access.authentication import Authentication
from gateway.access.caller import Caller
from gateway.access.token_file import TokenFileError, new_token, read_tokens, write_tokens
from services.errors import PermissionDenied, Unauthenticated
from tests.fuzz.strategies import fuzzed, texts

HEADERS = st.one_of(
    texts, st.text(), texts.map(lambda text: f"Bearer {text}"), st.text().map(lambda text: f"bearer {text}")
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ("callers", "alice", "sees_all", "limits", "tokens", "id", "sha256", "max_running_runs")
            ),
            inner,
        ),
    ),
    max_leaves=20,
)


@pytest.fixture
def authentication(tmp_path):
    write_tokens(tmp_path / "tokens.json", [new_token(Caller("alice"))[1]])
    return Authentication(tmp_path / "tokens.json")


@fuzzed(200)
@given(HEADERS)
def test_no_header_is_taken_for_a_token(authentication, header):
    with pytest.raises((Unauthenticated, PermissionDenied)):
        authentication.authenticate(header)


@fuzzed(200)
@given(st.one_of(st.binary(max_size=100), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_file_is_read_or_refused(tmp_path, content):
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    try:
        entries = read_tokens(path)
    except TokenFileError:
        return
    assert all(isinstance(entry.caller, Caller) for entry in entries)
