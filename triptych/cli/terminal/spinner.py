"""Spinner for work that is silent: after two seconds it shows on standard error what is awaited, and for how long.

A terminal shows one line that is redrawn and removed at the end. Elsewhere a line is written at once and then each half
minute, so that a log shows that the program is alive.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from triptych.terminal_text import step_aside_with

SILENT_S = 2.0
REDRAW_EVERY_S = 0.5
REPEAT_EVERY_S = 30.0
ERASE_LINE = "\r\x1b[K"


class Spinner:
    """Shows `text` while a block of `spinning` runs. Its methods may be called from any thread."""

    def __init__(self, text: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._text = text
        self._stream = stream
        self._clock = clock
        self._redraws = stream.isatty()
        self._lock = threading.Lock()
        self._began = clock()
        self._quiet_since = clock()
        self._is_drawn = False

    def update(self, text: str) -> None:
        """Changes what is awaited, such as `round 2 of 6`."""
        with self._lock:
            self._text = text

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While something else is written to the terminal: the line is removed first."""
        with self._lock:
            self._erase()
            try:
                yield
            finally:
                self._quiet_since = self._clock()

    def tick(self) -> float:
        """Draws, if it is time; returns the seconds until the next tick."""
        with self._lock:
            now = self._clock()
            if (left := SILENT_S - (now - self._quiet_since)) > 0:
                return left
            seconds = f"{now - self._began:.0f} s"
            if self._redraws:
                self._write(f"{ERASE_LINE}{self._text} ... {seconds}")
                self._is_drawn = True
                return REDRAW_EVERY_S
            self._write(f"{self._text} ... {seconds}\n")
            return REPEAT_EVERY_S

    def end(self) -> None:
        with self._lock:
            self._erase()

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(ERASE_LINE)
            self._is_drawn = False

    def _write(self, text: str) -> None:
        # What goes wrong while something is shown changes nothing.
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass


@contextmanager
def spinning(text: str) -> Iterator[Spinner]:
    """Shows a spinner on standard error while the block, or the function that this decorates, runs.

    It makes room for what `echo` prints.
    """
    spinner = Spinner(text, sys.stderr)
    has_ended = threading.Event()

    def tick() -> None:
        while not has_ended.wait(spinner.tick()):
            pass

    thread = threading.Thread(target=tick, name="spinner", daemon=True)
    thread.start()
    step_aside_with(spinner.writing)
    try:
        yield spinner
    finally:
        step_aside_with(None)
        has_ended.set()
        thread.join()
        spinner.end()
