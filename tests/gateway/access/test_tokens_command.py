"""`triptych tokens`."""

import pytest
from click.testing import CliRunner

from gateway.access.authentication import Authentication
from gateway.access.caller import CallerLimits
from gateway.access.token_file import read_tokens
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
