"""Asks in the terminal which images of a run go on, and to which stage."""

import asyncio
import sys
from dataclasses import dataclass

from triptych.result import Picture, RunResult
from triptych.stages import STAGES
from triptych.terminal_text import echo
from triptych.v1.pipeline_pb2 import RunSpec

QUESTION = "Which go on? Numbers, or names to go back to; empty: none"


@dataclass(frozen=True)
class Choice:
    """Images by name, and the stage that they go to: "refine" or "upscale"."""

    names: list[str]
    stage: str


def can_ask() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


async def ask(run: RunResult, spec: RunSpec) -> Choice | None:
    """Asks until the answer can be understood; None: nothing goes on. `run` has all pictures so far."""
    newest = run.pictures[-1].stage
    offered = [picture.index for picture in run.of_stage(newest)]
    while True:
        line = await read_line(f"{QUESTION} [{newest} {offered[0]} to {offered[-1]}]: ")
        if not line.split():
            return None
        try:
            return understand(line, run, spec)
        except ValueError as error:
            echo(str(error), err=True)


def understand(line: str, run: RunResult, spec: RunSpec) -> Choice:
    """Reads "0 2", or "generate-1"; a number is one of the newest stage. Raises ValueError in words."""
    newest = run.pictures[-1].stage
    pictures = [find(word, newest, run) for word in line.replace(",", " ").split()]
    stages = {picture.stage for picture in pictures}
    if len(stages) > 1:
        raise ValueError(f"expected pictures of one stage, got {' and '.join(sorted(stages))}")
    further = next_stage(stages.pop(), spec)
    return Choice([picture.name for picture in pictures], further)


def find(word: str, newest: str, run: RunResult) -> Picture:
    name = f"{newest}-{int(word)}" if word.isdecimal() else word
    try:
        return run[name]
    except KeyError:
        raise ValueError(f"there is no picture {name}; there are {', '.join(names_of(run))}") from None


def names_of(run: RunResult) -> list[str]:
    return [f"{picture.stage}-{picture.index}" for picture in run.pictures]


def next_stage(stage: str, spec: RunSpec) -> str:
    """The next one that the spec has, else the last."""
    names = [one.name for one in STAGES]
    later = names[names.index(stage) + 1 :]
    return next((name for name in later if spec.HasField(name)), names[-1])  # type: ignore[arg-type]  # fields by name


async def read_line(question: str) -> str:
    """A line from the terminal; the event loop goes on meanwhile, and Ctrl-C is heard."""
    echo(question, nl=False, err=True)
    loop = asyncio.get_running_loop()
    typed = loop.create_future()

    def read() -> None:
        if not typed.done():
            typed.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin, read)
    try:
        line: str = await typed
        return line
    finally:
        loop.remove_reader(sys.stdin)
