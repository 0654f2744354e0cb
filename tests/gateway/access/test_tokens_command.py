"""`triptych tokens`."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from gateway.access.authentication import Authentication, TokenExpired
from gateway.access.caller import CallerLimits
from gateway.access.token_file import TokenFileError, read_tokens
from gateway.access.tokens_command import tokens
from services.errors import PermissionDenied


@pytest.fixture
def run(tmp_path):
    """Runs `triptych tokens` on a file of its own."""

    def invoke(*arguments):
        return CliRunner().invoke(tokens, [*arguments, "--tokens", str(tmp_path / "tokens.json")])

    return invoke


@pytest.fixture
def authenticate(tmp_path):
    return lambda token: Authentication(tmp_path / "tokens.json").authenticate(f"Bearer {token}")


def test_an_added_token_is_printed_alone_and_opens_the_gateway(run, authenticate):
    token = run("add", "alice").stdout.strip()
    assert authenticate(token).name == "alice"


def test_a_caller_keeps_its_rights_with_a_second_token(run, authenticate):
    first = run("add", "alice", "--sees-all", "--max-running-runs", "3").stdout.strip()
    second = run("add", "alice", "--max-images-per-run", "8").stdout.strip()
    assert first != second
    assert authenticate(first) == authenticate(second)
    assert authenticate(second).limits == CallerLimits(max_running_runs=3, max_images_per_run=8)
    assert authenticate(second).sees_all


def test_the_list_shows_callers_and_no_tokens(run):
    token = run("add", "alice", "--max-queued-runs", "5").stdout.strip()
    shown = run("list").stdout
    assert "alice" in shown
    assert "max_queued_runs=5" in shown
    assert token not in shown


def test_one_token_of_a_caller_is_revoked_by_its_id(run, authenticate, tmp_path):
    first = run("add", "alice").stdout.strip()
    second = run("add", "alice").stdout.strip()
    run("revoke", read_tokens(tmp_path / "tokens.json")[0].token_id)
    with pytest.raises(PermissionDenied):
        authenticate(first)
    assert authenticate(second).name == "alice"


def test_all_tokens_of_a_caller_are_revoked_by_its_name(run, tmp_path):
    for name in ("alice", "alice", "bob"):
        run("add", name)
    run("revoke", "alice")
    assert [entry.caller.name for entry in read_tokens(tmp_path / "tokens.json")] == ["bob"]


def test_revoking_what_is_not_there_is_an_error(run):
    run("add", "alice")
    done = run("revoke", "bob")
    assert done.exit_code == 1
    assert "no caller with the name 'bob'" in done.output


def test_a_name_that_cannot_be_used_is_wrong_usage(run, tmp_path):
    done = run("add", "a b")
    assert done.exit_code == 2
    assert not (tmp_path / "tokens.json").exists()


def test_a_broken_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "tokens.json").write_text("{")
    assert run("add", "alice").exit_code == 1
    assert (tmp_path / "tokens.json").read_text() == "{"


def test_an_expired_token_is_refused_with_what_to_do(run, authenticate, tmp_path):
    token = run("add", "alice", "--expires-in", "1h").stdout.strip()
    assert authenticate(token).name == "alice"
    change_token(tmp_path / "tokens.json", expires="2026-01-31T12:00:00+00:00")
    with pytest.raises(TokenExpired, match="has expired; ask the operator for a new one"):
        authenticate(token)
    assert "expired" in run("list").stdout
    assert json.loads(run("list", "--json").stdout)["expired"] is True


def test_a_running_gateway_takes_up_a_rotated_token(run, tmp_path):
    path = tmp_path / "tokens.json"
    old = run("add", "alice", "--sees-all").stdout.strip()
    gateway = Authentication(path)
    done = run("rotate", "alice", "--overlap", "1h", "--expires-in", "90d")
    new = done.stdout.strip()

    assert gateway.authenticate(f"Bearer {new}") == gateway.authenticate(f"Bearer {old}")
    first, second = read_tokens(path)
    assert timedelta(minutes=59) < first.expires - datetime.now(UTC) < timedelta(hours=1)
    assert timedelta(days=89) < second.expires - datetime.now(UTC) < timedelta(days=91)
    assert f"token {first.token_id} of alice expires in 59m" in done.stderr


def test_rotation_does_not_prolong_a_token_and_can_end_it_at_once(run, authenticate, tmp_path):
    old = run("add", "alice", "--expires-in", "1h").stdout.strip()
    run("rotate", "alice", "--overlap", "7d")
    assert read_tokens(tmp_path / "tokens.json")[0].expires < datetime.now(UTC) + timedelta(hours=1)
    run("rotate", "alice", "--overlap", "0s")
    with pytest.raises(TokenExpired):
        authenticate(old)


def test_the_list_shows_age_and_expiry(run):
    run("add", "alice")
    run("add", "bob", "--expires-in", "30d")
    first, second = run("list").stdout.splitlines()
    assert "old  does not expire" in first
    assert "expires in 29d 23h" in second


def test_prune_removes_what_has_expired_and_nothing_else(run, tmp_path):
    run("add", "alice", "--expires-in", "1h")
    change_token(tmp_path / "tokens.json", expires="2026-01-31T12:00:00+00:00")
    run("add", "bob")
    assert "would remove 1 of 2" in run("prune", "--dry-run").stderr
    assert len(read_tokens(tmp_path / "tokens.json")) == 2
    assert "removed 1 of 2" in run("prune").stderr
    assert [entry.caller.name for entry in read_tokens(tmp_path / "tokens.json")] == ["bob"]


def test_revoke_lists_what_it_removes(run, tmp_path):
    run("add", "alice")
    (entry,) = read_tokens(tmp_path / "tokens.json")
    assert f"{entry.token_id} of alice" in run("revoke", "alice", "--dry-run").stderr
    assert read_tokens(tmp_path / "tokens.json") == (entry,)


@pytest.mark.parametrize("expires", ["tomorrow", "2026-01-31T12:00:00", 7, None])
def test_an_expiry_that_is_no_time_is_an_invalid_file(run, tmp_path, expires):
    run("add", "alice")
    change_token(tmp_path / "tokens.json", expires=expires)
    with pytest.raises(TokenFileError, match="is no file of tokens"):
        read_tokens(tmp_path / "tokens.json")


def test_a_file_that_is_nested_too_deeply_is_an_invalid_file(run, tmp_path):
    (tmp_path / "tokens.json").write_text("[" * 100_000)
    with pytest.raises(TokenFileError, match="is no file of tokens"):
        read_tokens(tmp_path / "tokens.json")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokens.json")
    with pytest.raises(TokenFileError, match="expected a file of tokens"):
        read_tokens(tmp_path / "tokens.json")


def change_token(path, **fields):
    content = json.loads(path.read_text())
    for caller in content["callers"].values():
        caller["tokens"][0] |= fields
    path.write_text(json.dumps(content))
