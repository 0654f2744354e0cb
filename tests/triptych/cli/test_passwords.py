"""Passwords in addresses are never printed: every option that takes an address, in the forms that people give them."""

import json
import logging

import click
import pytest

from services.serving.log_format import DiscreetFormatter, JsonFormatter
from triptych._redaction import without_passwords
from triptych.cli.main import cli

SECRET = "S3CRET"
# Port 1 has no server, so what connects fails at once.
FORMS = (
    f"postgresql://me:{SECRET}@127.0.0.1:1/runs",
    f"postgresql://me:sl/ash{SECRET}@127.0.0.1:1/runs",
    f"postgresql://127.0.0.1:1/runs?password={SECRET}",
    f"https://me:{SECRET}@127.0.0.1:1/x",
    f"https://{SECRET}@127.0.0.1:1",
    f"https://127.0.0.1:1/x?X-Amz-Signature={SECRET}&token={SECRET}",
    f"s3://me:{SECRET}@/",
    f"hf://me:{SECRET}@",
    f"nonsense://me:{SECRET}@a b",
    f"me:{SECRET}@127.0.0.1:1",
    f"host=127.0.0.1 password={SECRET} dbname=runs",
)
# No machine has this address, so that a gateway that takes the option ends all the same.
GATEWAY = ("serve", "gateway", "--insecure", "--host", "203.0.113.1", "--port", "50050")
COMMANDS = {
    "run --gateway": ("run", "a red house", "--gateway"),
    "runs list --gateway": ("runs", "list", "--gateway"),
    "runs watch --gateway": ("runs", "watch", "runs/0123456789abcdef", "--gateway"),
    "models --gateway": ("models", "--gateway"),
    "bench measure --gateway": ("bench", "measure", "--gateway"),
    "health ADDRESS": ("health",),
    "weights pull --from": ("weights", "pull", "tiny", "--from"),
    "weights push --to": ("weights", "push", "tiny", "--stage", "upscaler", "--to"),
    "weights convert SOURCE": ("weights", "convert", "--part", "swinir", "made"),
    "journal compare --journal": ("journal", "compare", "--store", "pictures", "--journal"),
    "journal compare --store": ("journal", "compare", "--journal", "journal.db", "--store"),
    "journal export --journal": ("journal", "export", "runs.tar", "--store", "pictures", "--journal"),
    "journal import --store": ("journal", "import", "runs.tar", "--journal", "journal.db", "--store"),
    "journal prune --journal": ("journal", "prune", "--store", "pictures", "--journal"),
    "journal check": ("journal", "check"),
    "serve gateway --journal": (*GATEWAY, "--store", "pictures", "--journal"),
    "serve gateway --store": (*GATEWAY, "--journal", "journal.db", "--store"),
    "serve gateway --generator": (*GATEWAY, "--generator"),
    "serve gateway --oidc-issuer": (*GATEWAY, "--oidc-audience", "x", "--oidc-issuer"),
    "serve gateway --http-public-url": (*GATEWAY, "--http-public-url"),
    "serve gateway --http-trusted-proxy": (*GATEWAY, "--http-trusted-proxy"),
    "serve gateway --webhook-allow": (*GATEWAY, "--webhook-secret-file", "x", "--webhook-allow"),
}
# Its options are checked by the gateway that it starts.
ELSEWHERE = {"up"}
# Their modules import a network, and their one address is of EC2's own service.
STAGES = ("generator", "refiner", "upscaler")


@pytest.mark.parametrize("form", FORMS)
def test_a_message_has_no_password(form):
    for text in (form, f"cannot reach '{form}': refused", f'expected a URL, got "{form}"\nand {form}'):
        assert SECRET not in without_passwords(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://[::1]:8080/runs?page_size=2",
        "hf://organization/model@main",
        "s3://bucket/a@b",
        "http://127.0.0.1:8080/x@y",
        "15:12:08,595 at runs/0123456789abcdef: 3 of 4, see me@example.com",
    ],
)
def test_a_message_without_secrets_stays_as_it_is(text):
    assert without_passwords(text) == text


@pytest.mark.parametrize("form", FORMS)
def test_a_line_of_the_log_has_no_password(form):
    record = logging.LogRecord("x", logging.ERROR, "", 0, "cannot reach %s", (form,), None)
    record.options = {"journal": form}
    record.store = form
    for formatter in (DiscreetFormatter("%(message)s"), JsonFormatter()):
        assert SECRET not in formatter.format(record)
    assert "cannot reach" in json.loads(JsonFormatter().format(record))["message"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_no_password(triptych_here, name):
    for form in FORMS:
        done = triptych_here(*COMMANDS[name], form)
        assert done.returncode, f"{name} took {form}"
        assert done.stderr
        assert SECRET not in done.stdout + done.stderr


def test_the_list_has_every_command_that_takes_an_address():
    listed = {" ".join(name.split()[:-1]) for name in COMMANDS}
    taking = {path for path, command in commands(cli) if any(map(takes_address, command.params))}
    # The commands of runs share their option.
    missing = {path for path in taking - listed - ELSEWHERE if not path.startswith("runs ")}
    assert not missing


def commands(group, path=()):
    context = click.Context(group)
    for name in set(group.list_commands(context)) - set(STAGES):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def takes_address(parameter):
    text = f"{getattr(parameter, 'help', '')} {parameter.metavar}"
    return any(word in text for word in ("URL", "HOST:PORT", "s3://", "ADDRESS"))


def test_up_leaves_variables_to_its_gateway_since_everybody_can_read_command_lines(
    triptych_here, monkeypatch
):
    given = []
    monkeypatch.setattr("triptych.cli.up.keep_running", lambda _stages, options: given.append(options))
    monkeypatch.setattr("triptych.cli.up.run_in_foreground", lambda _: None)
    done = triptych_here(
        *("up", "--port", "0", "--http-port", "0", "--max-runs", "3"),
        TRIPTYCH_JOURNAL=f"postgresql://me:{SECRET}@db/runs",
        TRIPTYCH_METRICS_PORT="0",
    )
    assert done.returncode == 0
    assert SECRET not in str(given)
    assert {"--max-runs", "--metrics-port"} <= set(given[0])
