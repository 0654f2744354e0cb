"""`triptych completion`: completion scripts for shells, made by click."""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from triptych.cli.main import COMPLETE_VARIABLE, PROGRAM, cli
from triptych.terminal_text import echo

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
HOW_TO = """\b
bash: add to ~/.bashrc: eval "$(triptych completion bash)"
zsh:  add to ~/.zshrc:  eval "$(triptych completion zsh)"
fish: triptych completion fish > ~/.config/fish/completions/triptych.fish
"""


@click.command(epilog=HOW_TO)
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete this command."""
    echo(SHELLS[shell](cli, {}, PROGRAM, COMPLETE_VARIABLE).source())
