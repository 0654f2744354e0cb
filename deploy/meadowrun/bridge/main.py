"""The bridge to Meadowrun: a process in its environment that answers JSON lines on standard input.

A question is {"id", "do", "with"}; its answers are any number of {"id", "said"}, what Meadowrun prints meanwhile, and then
one {"id", "done"} or {"id", "failed"}. {"do": "cancel", "with": {"question": id}} gives a question up. What the questions
mean it does not know.
"""

import asyncio
import contextlib
import contextvars
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import ec2  # type: ignore[import-not-found]  # beside this file, which is run as it is

# Of the question that is being answered.
question_id: contextvars.ContextVar[int | None] = contextvars.ContextVar("question_id", default=None)

Answer = Callable[[dict[str, Any]], None]


class BridgeReply(io.TextIOBase):
    """Takes the place of standard output, which Meadowrun prints to: its lines go to the client."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                self._answer({"id": question_id.get(), "said": line})
        return len(text)


async def serve(questions: asyncio.StreamReader, answer: Answer) -> None:
    """Answers until the questions end; then gives up what is being done, and waits for what drains."""
    running: dict[int, asyncio.Task[None]] = {}
    async for line in questions:
        question = json.loads(line)
        if question["do"] == "cancel":
            if task := running.get(question["with"]["question"]):
                task.cancel()
            answer({"id": question["id"], "done": None})
            continue
        task = asyncio.create_task(_carry_out(question, answer))
        running[question["id"]] = task
        task.add_done_callback(partial(_ended, running, question["id"], answer))
    for task in list(running.values()):
        task.cancel()
    await asyncio.gather(*running.values(), *ec2.followed, return_exceptions=True)


def _ended(
    running: dict[int, asyncio.Task[None]], number: int, answer: Answer, task: asyncio.Task[None]
) -> None:
    running.pop(number, None)
    # Here, for one that is given up before its first step does not get to say so itself.
    if task.cancelled():
        answer({"id": number, "failed": "it was given up"})


async def _carry_out(question: dict[str, Any], answer: Answer) -> None:
    question_id.set(question["id"])
    try:
        done = await ec2.DO[question["do"]](**question["with"])
    except ec2.EXPECTED as error:
        answer({"id": question["id"], "failed": ec2.in_words(error)})
    except Exception as error:  # noqa: BLE001 - whatever Meadowrun raises: the client must receive it
        traceback.print_exc()
        answer({"id": question["id"], "failed": f"{type(error).__name__}: {error}"})
    else:
        answer({"id": question["id"], "done": done})


async def main() -> None:
    # Ctrl-C in the client's terminal: the client handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            out.write(json.dumps(message) + "\n")
            out.flush()

    sys.stdout = BridgeReply(answer)
    ec2.prepare_session()
    questions = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(questions), sys.stdin
    )
    answer({"ready": True})
    await serve(questions, answer)


if __name__ == "__main__":
    asyncio.run(main())
