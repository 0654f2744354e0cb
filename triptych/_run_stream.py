"""RunStream: the events of one run, or its result."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

from triptych._reconnect import Backoff, resumed
from triptych.errors import CallError, to_run_error
from triptych.notebook import choose_sheet
from triptych.result import RunResult
from triptych.v1.pipeline_pb2 import Event, RunError, RunState


class RunStream:
    """Iterate over it for the events, or await it for the result: `async for event in run`, or `await run`.

    Either, once; `async with` ends it at a place that is known. Events come once each and in order, over as many
    connections as it takes. When the run FAILED, a CallError is raised after its last event. Awaiting a run in manual
    mode returns when an image has to be selected.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[int]],
        follow: Callable[[int], AsyncGenerator[Event]],
        is_idle: Callable[[str, int], Awaitable[bool]],
        result: RunResult,
        *,
        request_id: str,
        backoff: Backoff,
        deadline_s: float | None = None,
        leave: Callable[[str], Awaitable[None]] | None = None,
        show: bool | None = None,
    ) -> None:
        """`begin` returns the sequence number to follow from; `is_idle` returns whether nothing has come after an event.

        `result` has what is known before. `leave` is called when a run goes on that should not.
        """
        self.request_id = request_id
        # Grows with the events.
        self.result = result
        self._begin = begin
        self._follow = follow
        self._is_idle = is_idle
        self._backoff = backoff
        self._deadline_s = deadline_s
        self._leave = leave
        self._show = show
        self._events: AsyncGenerator[Event] | None = None

    def __aiter__(self) -> AsyncGenerator[Event]:
        if self._events is not None:
            raise RuntimeError(
                "this run has been followed already; expected one `async for` or one `await`: "
                "follow it again with client.watch(name)"
            )
        self._events = self._iterate()
        return self._events

    def __await__(self) -> Generator[object, None, RunResult]:
        return self.gather().__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stops following; the run is cancelled unless it is detached or only watched."""
        if self._events is not None:
            # It is running where another task waits for its next event; that one ends it.
            with suppress(RuntimeError):
                await self._events.aclose()

    async def gather(self) -> RunResult:
        """What awaiting it does, as a coroutine: for a task of its own."""
        with choose_sheet(self._show) as sheet:
            async with aclosing(self.until_it_rests()) as events:
                async for event in events:
                    sheet.update(event, self.result)
        return self.result

    async def until_it_rests(self) -> AsyncGenerator[Event]:
        """Its events to where it ends or waits for images to be selected."""
        async with aclosing(aiter(self)) as events:
            async for event in events:
                yield event
                # A replay may contain selections made since. A run that our disconnect would cancel is followed on.
                if (
                    event.state.state == RunState.RUN_STATE_AWAITING_SELECTION
                    and self._leave is None
                    and await self._is_idle(self.result.name, event.sequence)
                ):
                    return

    async def _iterate(self) -> AsyncGenerator[Event]:
        try:
            after_sequence = await self._begin()
            events = resumed(
                self._follow, self._backoff, after_sequence=after_sequence, deadline_s=self._deadline_s
            )
            async with aclosing(events):
                async for event in events:
                    self.result.update(event)
                    yield event
        except CallError as error:
            if self.result.state != "failed":
                raise
            raise to_run_error(self.result.error or RunError(), error) from None
        except (GeneratorExit, asyncio.CancelledError):
            if self._leave is not None and self.result.name and not self.result.is_finished:
                await self._leave(self.result.name)
            raise
        if self.result.state == "failed":
            raise to_run_error(self.result.error or RunError())
