"""Counts the opcodes of a pickle before it is loaded, to refuse endless ones.

A pickle of some hundred bytes can make tuples of shared tuples whose hash visits 2**60 leaves, in C code that no signal
interrupts. Each opcode is charged with the sizes of what it takes; published checkpoints need less than a hundredth of
the bound.
"""

import pickletools
from pathlib import Path
from typing import Any

from services.errors import ModelError

MAX_WORK = 50_000_000
_MARK = "MARK"
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


def check_work(payload: bytes, path: Path) -> None:
    """Raises ModelError for a pickle that would take longer than any published one. A malformed one passes.

    What it does not understand, the unpickler refuses in its own words.
    """
    try:
        _count(payload, path)
    except (ValueError, IndexError, KeyError, AttributeError):
        return


def _count(payload: bytes, path: Path) -> None:
    stack: list[Any] = []  # the size of each item, or the mark
    memo: dict[Any, int] = {}
    work = 0
    for opcode, argument, _ in pickletools.genops(payload):
        name = opcode.name
        if name == _MARK:
            stack.append(_MARK)
        elif name in _GETS:
            stack.append(memo[argument])
        elif name in _PUTS:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken = _take(stack, opcode)
            work += 1 + sum(taken)
            if work > MAX_WORK:
                raise ModelError(
                    f"{path} holds a pickle that would take more than {MAX_WORK:,} steps to load, as no published file "
                    "does: refused, and nothing of it was run"
                )
            size = 1 + sum(taken) if name in _TUPLES else 1
            stack += [size] * len(opcode.stack_after)


def _take(stack: list[Any], opcode: Any) -> list[int]:
    """Takes what the opcode takes off the stack; returns the sizes of it."""
    before = opcode.stack_before
    taken: list[int] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) != _MARK:
            taken.append(item)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        item = stack.pop()
        if item != _MARK:
            taken.append(item)
    return taken
