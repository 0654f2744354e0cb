"""A terminal for tests: a pseudo-terminal whose other end answers what the program asks, and keeps what it prints."""

import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Mapping
from fcntl import ioctl
from pathlib import Path

ROWS, COLUMNS = 40, 80
# Of a cell, in pixels.
WIDTH_PX, HEIGHT_PX = 10, 20

ASKS_ATTRIBUTES = b"\x1b[c"
ASKS_KITTY = b"a=q"
SIXEL = {ASKS_ATTRIBUTES: b"\x1b[?62;4;6c"}
KITTY = {ASKS_ATTRIBUTES: b"\x1b[?62;6c", ASKS_KITTY: b"\x1b_Gi=1;OK\x1b\\"}
PLAIN: dict[bytes, bytes] = {ASKS_ATTRIBUTES: b"\x1b[?62;6c"}


def run_in_terminal(
    arguments: list[str], answers: Mapping[bytes, bytes], *, folder: Path, env: dict[str, str]
) -> tuple[int, str]:
    """Runs a program to its end in a terminal that gives these answers; returns its exit code and its output."""
    near, far = pty.openpty()
    ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, COLUMNS * WIDTH_PX, ROWS * HEIGHT_PX))
    with subprocess.Popen(
        arguments,
        cwd=folder,
        env=env,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        # So that the terminal is the process's own, and it is in the foreground there.
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(far)
        shown, answered = b"", set()
        while select.select([near], [], [], 60)[0]:
            try:
                data = os.read(near, 65536)
            except OSError:  # the last of the program's ends is closed
                break
            shown += data
            for question, answer in answers.items():
                if question in shown and question not in answered:
                    answered.add(question)
                    os.write(near, answer)
        os.close(near)
    return process.returncode, shown.decode("utf-8", "replace")
