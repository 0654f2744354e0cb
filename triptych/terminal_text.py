"""Escapes control characters in text of others, such as prompts and errors, for terminals.

Control characters move the cursor, set titles and colours, or answer in the user's name; characters that change the
direction of text show it in another order than it has (Unicode TR 36).
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import click

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
# Marks, embeddings, overrides and isolates of direction; separators of lines and paragraphs; half characters.
_HIDDEN = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_HIDDEN}]")
_UNSAFE_IN_A_LINE = re.compile(f"[{_CONTROLS}{_HIDDEN}\t\n]")


# What has drawn on the terminal steps aside while something is printed.
_stepping_aside: Callable[[], AbstractContextManager[None]] = nullcontext


def step_aside_with(stepping_aside: Callable[[], AbstractContextManager[None]] | None) -> None:
    """Has `echo` print inside of such a block; None: as before."""
    global _stepping_aside
    _stepping_aside = stepping_aside or nullcontext


def escape(text: str, *, keeps_lines: bool = False) -> str:
    """The text with \\x1b and the like written out; also ends of lines, unless `keeps_lines`."""
    return (_UNSAFE if keeps_lines else _UNSAFE_IN_A_LINE).sub(_written, text)


def escape_json(text: str) -> str:
    """Equal JSON, with the same characters as \\u escapes; JSON itself escapes those below space only."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Prints a text, escaped but for its ends of lines: the only way in which our commands print, beside rich's consoles."""
    with _stepping_aside():
        click.echo(escape(str(text), keeps_lines=True), err=err, nl=nl)  # noqa: TID251 - here it is escaped


def _written(found: re.Match[str]) -> str:
    code = ord(found[0])
    short = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
    return short.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
