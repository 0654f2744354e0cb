"""The command `triptych`: imports a command only when it is run, and reports errors in a line or two.

It knows commands by the name of their module alone, so `triptych --help` imports neither grpc nor a network,
and a machine that lacks a stage's libraries can still run the others.
"""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

import triptych
from triptych import _installation
from triptych._redaction import without_passwords
from triptych.cli.terminal.streams import set_up_streams
from triptych.stages import STAGES
from triptych.terminal_text import echo, escape

PROGRAM = "triptych"
# Set by the scripts of `triptych completion`: then the command line only prints completions.
COMPLETE_VARIABLE = "_TRIPTYCH_COMPLETE"
# Of a process ended by Ctrl-C, as a shell has it: 128 + SIGINT.
INTERRUPTED = 130
# Errors whose text is all that there is to say, by module: importing them here would import grpc.
EXPECTED_ERRORS = {"services.errors": "TriptychError", "triptych.errors": "CallError"}
SERVICE_LINK = re.compile("(tcp|udp|sctp)://")
OUR_PACKAGES = ("triptych", *_installation.SERVER_PACKAGES)


@dataclass(frozen=True)
class LazyCommand:
    """The module of a command, and its line in `--help`, which does not import it."""

    module: str
    name: str
    summary: str

    def load(self) -> click.Command:
        """Imports the command; raises ClickException with the line that installs what is missing."""
        if self.module.partition(".")[0] in _installation.SERVER_PACKAGES:
            require_server()
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in OUR_PACKAGES:
                raise
            raise click.ClickException(_installation.missing_library(error.name, "this command")) from None
        command: click.Command = getattr(module, self.name)
        return with_environment(command)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            return self.lazy[cmd_name].load()
        return super().get_command(ctx, cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        rows = {name: command.summary for name, command in self.lazy.items()}
        rows |= {name: command.get_short_help_str() for name, command in self.commands.items()}
        found = [CompletionItem(name, help=row) for name, row in rows.items() if name.startswith(incomplete)]
        # A group's own would import every command for its help.
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.summary) for name, command in self.lazy.items()]
        rows += [(name, command.get_short_help_str()) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def with_environment(command: click.Command) -> click.Command:
    """Lets every option be set as TRIPTYCH_<OPTION>, whichever command it belongs to."""
    command.context_settings.setdefault("auto_envvar_prefix", "TRIPTYCH")
    command.context_settings.setdefault("show_default", True)
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = TextType()
    if isinstance(command, click.Group):
        for child in command.commands.values():
            with_environment(child)
    return command


class TextType(click.ParamType[str, str]):
    """Any text; bytes that are not UTF-8 arrive as half characters, which neither a message nor a file can hold."""

    name = "TEXT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"expected UTF-8, got {value.encode('utf-8', 'backslashreplace').decode()}", param, ctx)
        return value


def require_server() -> None:
    """Makes the server's code importable; raises ClickException with the line that installs it."""
    if not _installation.add_server_to_path():
        raise click.ClickException(_installation.missing_server())


SERVICES = {
    stage.worker_name: LazyCommand(f"services.{stage.worker_name}.service", "serve", stage.summary)
    for stage in STAGES
} | {"gateway": LazyCommand("gateway.command", "serve", "The pipeline over the three stages.")}

serve = with_environment(
    LazyGroup("serve", lazy=SERVICES, help="Run one service in this process.", no_args_is_help=True)
)

COMMANDS = {
    "run": LazyCommand("triptych.cli.run.command", "run", "Make pictures from a prompt."),
    "up": LazyCommand("triptych.cli.up", "up", "Start all four services and keep them running."),
    "runs": LazyCommand("triptych.cli.runs", "runs", "List, show, watch, continue, cancel and delete runs."),
    "models": LazyCommand(
        "triptych.cli.models", "models", "List the models of a gateway, and the words that they know."
    ),
    "weights": LazyCommand("services.weights.command", "weights", "Fetch, convert, verify and list models."),
    "journal": LazyCommand(
        "gateway.journal.command", "journal", "Check, repair, export and import a gateway's journal."
    ),
    "tokens": LazyCommand("gateway.access.tokens_command", "tokens", "Manage the tokens of callers."),
    "certs": LazyCommand("gateway.access.certs_command", "certs", "Make TLS certificates."),
    "deploy": LazyCommand("deploy.command", "deploy", "Run and scale workers on a deployment target."),
    "bench": LazyCommand(
        "triptych.cli.bench", "bench", "Measure a deployment; simulate its latency and cost."
    ),
    "completion": LazyCommand(
        "triptych.cli.completion", "completion", "Print a completion script for bash, zsh or fish."
    ),
    "health": LazyCommand("triptych.cli.health", "health", "Check the health of a service."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(triptych.__version__, prog_name=PROGRAM)
def cli() -> None:
    """A prompt becomes pictures in three panels: sketch, refine, upscale.

    Every option can also be set in the environment: --seed as TRIPTYCH_SEED, --gateway as TRIPTYCH_GATEWAY.
    """


cli.add_command(serve)


def main() -> NoReturn:
    """Runs the command line and exits: 0 done, 1 an explained error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    # gRPC would mix its own notes, such as a server's goodbye, with ours.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Several networks share the cores of a laptop. By default OpenMP's threads spin while they wait for one that has no
    # core: refining took twenty times as long beside one busy process, against a fifth more on an idle machine so.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    set_up_streams()
    forget_service_links()
    code = run_command()
    try:
        sys.stdout.flush()
    except OSError as error:
        # A full disk: what was to be kept is not.
        say_error(f"standard output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 1
    sys.exit(code)


def forget_service_links() -> None:
    """Drops what Kubernetes sets for a service named triptych or triptych-...: TRIPTYCH_PORT=tcp://... is no --port."""
    for name, value in list(os.environ.items()):
        if name.startswith("TRIPTYCH_") and name.endswith("PORT") and SERVICE_LINK.match(value):
            del os.environ[name]


def run_command() -> int:
    """Runs the command line; an error is printed in a line or two. Returns the exit code."""
    try:
        code = cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.message = escape(without_passwords(error.message + suggestion(error)), keeps_lines=True)  # type: ignore[misc]  # final there
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except OSError as error:
        say_error(str(error))
        return 1
    except Exception as error:
        if not is_expected(error):
            raise
        say_error(str(error))
        return 1
    return code if isinstance(code, int) else 0


def say_error(message: str) -> None:
    echo(f"Error: {escape(without_passwords(message), keeps_lines=True)}", err=True)


def suggestion(error: click.ClickException) -> str:
    """The commands that a mistyped one may have meant; empty for any other error, or where nothing is near.

    For groups whose commands are imported, click prints it.
    """
    context = error.ctx if isinstance(error, click.UsageError) else None
    found = re.fullmatch(r"No such command '(.*)'\.", error.message)
    if context is None or found is None or not isinstance(context.command, LazyGroup):
        return ""
    near = difflib.get_close_matches(found[1], context.command.list_commands(context), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def is_expected(error: Exception) -> bool:
    """Whether it was raised on purpose, to be read: only what has been imported can have been raised."""
    return any(
        isinstance(error, getattr(sys.modules[module], name))
        for module, name in EXPECTED_ERRORS.items()
        if module in sys.modules
    )
