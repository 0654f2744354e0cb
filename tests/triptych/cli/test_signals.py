"""How a signal ends a command that runs in the foreground."""

import asyncio
import os
import signal

import click
import pytest

from triptych.cli.terminal.signals import run_in_foreground


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_cleans_up_and_becomes_the_exit_code(before, number, code):
    heard = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            heard.append("cleaned up")

    old = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(click.exceptions.Exit) as left:
            run_in_foreground(work())
    finally:
        signal.signal(signal.SIGINT, old)
    assert (left.value.exit_code, heard) == (code, ["cleaned up"])


def test_an_error_of_its_own_passes_through():
    async def work() -> None:
        raise click.ClickException("no paper")

    with pytest.raises(click.ClickException, match="no paper"):
        run_in_foreground(work())
