"""A terminal for tests: a pseudo-terminal whose other end answers what the program asks, and keeps what it prints.

What a program asks of a terminal itself it waits for only a tenth of a second: those answers are typed ahead, so that a
busy machine is never late.
"""

import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from fcntl import ioctl
from pathlib import Path
from types import MappingProxyType

ROWS, COLUMNS = 40, 80
# Of a cell, in pixels.
WIDTH_PX, HEIGHT_PX = 10, 20

ASKS_ATTRIBUTES = "\x1b[c"
# What kinds of terminals say of themselves: attributes, among them 4 for sixel; and that kitty's graphics are known.
SIXEL = b"\x1b[?62;4;6c"
KITTY = b"\x1b[?62;6c\x1b_Gi=1;OK\x1b\\"
PLAIN = b"\x1b[?62;6c"
# Makes the terminal the process's own, in whose foreground it is, and becomes the program.
TAKE_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


def run_in_terminal(
    arguments: list[str],
    kind: bytes,
    answers: Mapping[bytes, bytes] = MappingProxyType({}),
    *,
    folder: Path,
    env: dict[str, str],
) -> tuple[int, str]:
    """Runs a program to its end in a terminal of that kind; returns its exit code and its output.

    `answers` are what somebody types who is asked these questions.
    """
    near, far = pty.openpty()
    os.write(near, kind)
    ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, COLUMNS * WIDTH_PX, ROWS * HEIGHT_PX))
    with subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *arguments],
        cwd=folder,
        env=env,
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
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
