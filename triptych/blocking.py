"""The client for programs without asyncio: the same calls, and each waits for its answer.

The async client runs on an event loop in a thread of its own; nothing is written twice but the signatures. May be
used by several threads at once, but not after fork(): a child makes a client of its own.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from triptych import _run_stream, client
from triptych._reconnect import Backoff
from triptych.result import Picture, RunResult
from triptych.v1.pipeline_pb2 import (
    Event,
    ListModelsResponse,
    RefineStage,
    Run,
    RunSpec,
    RunState,
    UpscaleStage,
)
from triptych.v1.stage_pb2 import PromptReading

Answer = TypeVar("Answer")
END = object()
FORKED = (
    "this client was made before fork(), and the child has neither its thread nor its connection; make a client in each "
    "process (multiprocessing: the start method 'spawn', or the client in the worker's initializer)"
)


class Client:
    """A connection to one gateway: `with Client("127.0.0.1:50050") as client: ...`. Arguments as in triptych.client."""

    def __init__(
        self,
        address: str,
        *,
        token: str = "",
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        backoff: Backoff | None = None,
        max_loaded_pixels: int | None = None,
    ) -> None:
        async def connect() -> client.Client:
            # A channel belongs to the event loop that it was made on.
            return client.Client(
                address,
                token=token,
                ca=ca,
                cert=cert,
                key=key,
                backoff=backoff,
                max_loaded_pixels=max_loaded_pixels,
            )

        self._loop = LoopThread()
        try:
            self._client = self._loop.wait(connect())
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is still followed, then the connection. The client is of no use afterwards."""
        self._loop.close(self._client.close)

    def run(
        self,
        prompt: str | RunSpec,
        *,
        request_id: str = "",
        detach: bool | None = None,
        timeout_s: float | None = None,
    ) -> "RunStream":
        stream = self._client.run(
            prompt, request_id=request_id, detach=detach, timeout_s=timeout_s, show=False
        )
        return RunStream(stream, self._loop)

    def watch(self, name: str, *, after_sequence: int = 0, timeout_s: float | None = None) -> "RunStream":
        stream = self._client.watch(name, after_sequence=after_sequence, timeout_s=timeout_s, show=False)
        return RunStream(stream, self._loop)

    def select(
        self,
        images: str | Picture | Iterable[str | Picture],
        *,
        refine: int | RefineStage | None = None,
        upscale: bool | UpscaleStage = False,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> "RunStream":
        stream = self._client.select(
            images, refine=refine, upscale=upscale, request_id=request_id, timeout_s=timeout_s, show=False
        )
        return RunStream(stream, self._loop)

    def create_run(
        self, spec: RunSpec, *, request_id: str = "", webhook_url: str = "", in_turn: bool = False
    ) -> Run:
        return self._loop.wait(
            self._client.create_run(spec, request_id=request_id, webhook_url=webhook_url, in_turn=in_turn)
        )

    def move_run(self, name: str, *, before: str = "", after: str = "", now: bool = False) -> Run:
        return self._loop.wait(self._client.move_run(name, before=before, after=after, now=now))

    def cancel_run(self, name: str, images: Sequence[str] = ()) -> Run:
        return self._loop.wait(self._client.cancel_run(name, images))

    def get_run(self, name: str) -> Run:
        return self._loop.wait(self._client.get_run(name))

    def list_runs(self, states: Sequence[RunState.ValueType] = ()) -> Iterator[Run]:
        return self._loop.iterate(self._client.list_runs(states))

    def delete_run(self, name: str) -> None:
        self._loop.wait(self._client.delete_run(name))

    def list_models(self) -> list[ListModelsResponse.StageModel]:
        return self._loop.wait(self._client.list_models())

    def read_prompt(self, prompt: str, *, model: str = "") -> PromptReading:
        return self._loop.wait(self._client.read_prompt(prompt, model=model))

    def download_image(self, name: str, *, timeout_s: float | None = None) -> bytes:
        return self._loop.wait(self._client.download_image(name, timeout_s=timeout_s))

    def save_image(self, name: str, path: str | Path, *, timeout_s: float | None = None) -> Path:
        return self._loop.wait(self._client.save_image(name, path, timeout_s=timeout_s))


class RunStream:
    """Iterate over it for the events, or ask for the `result()`; either, once."""

    def __init__(self, stream: _run_stream.RunStream, loop: "LoopThread") -> None:
        self._stream = stream
        self._loop = loop

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def so_far(self) -> RunResult:
        """The result so far; it grows while the run is followed."""
        return self._stream.result

    def __iter__(self) -> Iterator[Event]:
        return self._loop.iterate(aiter(self._stream))

    def result(self) -> RunResult:
        """Waits for the end of the run, or in manual mode until an image has to be selected. Raises CallError."""
        return self._loop.wait(self._stream.gather())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.wait(self._stream.aclose())


class LoopThread:
    """An event loop in a thread, and how others wait for it. Of a process that forks, the child has no such thread."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        # A daemon: a program that forgets to close its client can still end.
        self._thread = threading.Thread(target=self._loop.run_forever, name="triptych-client", daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Runs it on the loop and returns its answer. A wait that is interrupted (Ctrl-C) cancels it first."""
        if os.getpid() != self._pid:
            work.close()
            raise RuntimeError(FORKED)
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this client is closed; expected calls before close() and inside its `with`")
        over = threading.Event()
        tasks: list[asyncio.Task[Answer]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(work))
            tasks[0].add_done_callback(lambda _: over.set())

        self._loop.call_soon_threadsafe(start)
        try:
            over.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            over.wait()
            raise
        return tasks[0].result()

    def iterate(self, source: AsyncGenerator[Answer]) -> Iterator[Answer]:
        """Its items, one by one; the source is closed when the iteration ends or is left."""
        try:
            while (item := self.wait(next_of(source))) is not END:
                yield item
        finally:
            if not self._loop.is_closed() and os.getpid() == self._pid:
                self.wait(source.aclose())

    def close(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Cancels what still runs, waits for its end and for `last`, and ends the thread."""
        # A child of fork() has nothing of its own to close, and closing its parent's would hang.
        if self._loop.is_closed() or os.getpid() != self._pid:
            return

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if last is not None:
                await last()
            await asyncio.get_running_loop().shutdown_asyncgens()

        self.wait(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def next_of(source: AsyncGenerator[Answer]) -> Any:
    """The next item, or END: a StopAsyncIteration does not travel between threads."""
    return await anext(source, END)
