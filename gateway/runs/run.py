"""A run that this gateway carries out: its flow, and what callers ask of it meanwhile."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from gateway.planning.plan import Plan
from gateway.planning.selections import (
    Selection,
    assign_indexes,
    changed_models,
    check_total,
    find_existing_selection,
    make_selection,
)
from gateway.runs.admission import AdmissionTicket
from gateway.runs.flow import Flow
from gateway.runs.image_tasks import RunContext
from gateway.runs.recorder import RunRecorder
from gateway.workers.retry_policy import RetryPolicy
from services.errors import InvalidRequest, TriptychError
from services.serving.request_log import current_traceparent
from services.serving.tracing import spans
from services.serving.tracing.log_fields import logging_with
from services.serving.tracing.spans import trace_id_of
from triptych.v1.pipeline_pb2 import RunState

log = logging.getLogger(__name__)


class ActiveRun:
    """Begins from where the record stands, unless the run is idle. A run is in one of four states: it has work, or it
    `is_idle` since it waits for a selection, `is_finished`, or `is_taken_over` by another gateway.

    `ticket` is its place among the runs that wait to begin, if it has one. `deadline_ns` is its caller's, in nanoseconds
    since 1970. `on_idle` is called whenever the run becomes idle or finishes.
    """

    def __init__(
        self,
        record: RunRecorder,
        plan: Plan,
        context: RunContext,
        *,
        caller: str,
        is_detached: bool,
        on_idle: Callable[["ActiveRun"], None],
        ticket: AdmissionTicket | None = None,
        deadline_ns: int | None = None,
    ) -> None:
        self.record = record
        self.caller = caller
        self.plan = plan
        self.error: TriptychError | None = None
        # A detached run continues without clients.
        self.is_detached = is_detached
        self._context = context
        # Its place in the queue, while it has work.
        self.ticket = ticket
        self._deadline_ns = deadline_ns
        self._on_idle = on_idle
        self._is_cancelled = False
        self._is_suspended = False
        self._is_idle = True
        self._flow: Flow | None = None
        # Of the work that is under way, or that was the last.
        self._span = spans.NO_SPAN
        self._task: asyncio.Task[None] | None = None
        if record.run.has_work:
            self._start()

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def is_finished(self) -> bool:
        return self.record.log.is_closed

    @property
    def is_idle(self) -> bool:
        """Whether nothing is done for it: it has finished, or waits for a selection."""
        return self._is_idle

    @property
    def is_taken_over(self) -> bool:
        """Whether another gateway carries it out since this one was silent for too long."""
        return self.record.log.is_disowned

    @property
    def is_written(self) -> bool:
        """Whether the journal has all of its events."""
        return self.record.log.is_flushed

    def cancel(self, images: Sequence[str] = ()) -> None:
        """Stops the work of all stages, or on these images; of what is finished nothing changes.

        Raises InvalidRequest for a name that the run does not have.
        """
        for index, name in enumerate(images):
            if not self._has_image(name):
                raise InvalidRequest(
                    f"images[{index}]", f"must be an image of {self.record.name}, got {name[:120]!r}"
                )
        if images:
            if self._flow is not None and not self._is_idle:
                self._flow.cancel_images(images)
        elif self._is_idle and not self.is_finished:
            self._finish(RunState.RUN_STATE_CANCELLED)
        elif not self.is_finished and not self._is_cancelled and self._task is not None:
            self._is_cancelled = True
            self._task.cancel()

    async def suspend(self) -> None:
        """Stops the work and leaves the run as it stands: it goes on elsewhere, or at the next start."""
        self._is_suspended = True
        if self._task is not None:
            self._task.cancel()
            await self.wait()

    async def select(
        self,
        request_id: str,
        asked: Sequence[Selection],
        *,
        max_images: int | None = None,
    ) -> None:
        """Takes images to a stage, also of a run that had finished; once for each request_id.

        Raises InvalidRequest, AlreadyExists, NoWorker or QueueFull, and then nothing was begun.
        """
        if self._is_cancelled and not self._is_idle:
            await self.wait()
        run = self.record.run
        if find_existing_selection(run, request_id, asked, self.plan):
            return
        if self._is_idle:
            self._context.admission.check(self.caller)
        selected = await make_selection(request_id, asked, self.plan, run, self._context.pools)
        for one in asked:
            if one.refine.HasField("mask"):
                await self.record.store_mask(one.refine.mask)
        # Once more: nothing is awaited from here to the record.
        if find_existing_selection(run, request_id, asked, self.plan):
            return
        if max_images is not None:
            check_total(selected, self.plan, run, max_images)
        assign_indexes(selected, self.plan, run)
        self.record.selected(selected)
        for model in changed_models(selected, self.plan):
            self.record.warn(
                "MODEL_CHANGED",
                f"nobody serves the model any more that this run began with; made with {model.name} {model.digest[:12]}",
            )
        if self._is_idle:
            self._start()
        elif self._flow is not None:
            self._flow.selected()

    async def wait(self) -> None:
        """Returns when the run is idle or suspended."""
        while not self._is_idle and self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
            # Its callback may begin another flow.
            await asyncio.sleep(0)

    def _start(self) -> None:
        """Starts with what the record lacks."""
        self._is_cancelled = False
        self._is_idle = False
        if self.ticket is None or self.ticket.has_left:
            self.ticket = self._context.admission.enter(self.caller, run=self.name, was_accepted=True)
        ticket = self.ticket
        self._span = self._start_span()
        self.record.traceparent = self._span.traceparent or current_traceparent() or self.record.traceparent
        ticket.listen(self.record.queued_run)
        self._flow = Flow(
            self.plan, self.record, self._context, caller=self.caller, retry_policy=self._retry_policy()
        )
        trace_id = trace_id_of(self.record.traceparent)
        with spans.use(self._span), logging_with(run=self.name, caller=self.caller, trace_id=trace_id):
            self._task = asyncio.create_task(self._carry_out(ticket, self._flow), name=self.record.name)
        self._task.add_done_callback(lambda _: ticket.leave())
        self._task.add_done_callback(self._on_done)

    def _start_span(self) -> spans.Span:
        """Of the current request, or of its own; with a link to the work before, of this or another process."""
        spec = self.plan.spec
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": "triptych",
            "gen_ai.output.type": "image",
            "gen_ai.request.seed": spec.seed,
            "gen_ai.request.choice.count": sum(planned.max_images for planned in self.plan.stages[-1:]),
            "triptych.run": self.name,
        }
        return spans.start_span("run", attributes, links=[self.record.traceparent])

    def _end_span(self) -> None:
        state = RunState.Name(self.record.run.state).removeprefix("RUN_STATE_").lower()
        self._span.set({"triptych.run.state": state, "triptych.num_images": len(self.record.run.images)})
        if self.error is not None:
            self._span.fail(self.error.reason)
        self._span.end()

    def _retry_policy(self) -> RetryPolicy:
        deadline = None
        if self._deadline_ns is not None:
            left_s = (self._deadline_ns - time.time_ns()) / 1e9
            deadline = asyncio.get_running_loop().time() + left_s
        return self._context.retry_policy.until(deadline)

    async def _carry_out(self, ticket: AdmissionTicket, flow: Flow) -> None:
        if ticket.is_waiting:
            with spans.span("queue", {"triptych.queue": "runs"}):
                await ticket.wait()
        await flow.run()

    def _has_image(self, name: str) -> bool:
        stage_name, _, index = name.removeprefix(f"{self.record.name}/images/").rpartition("-")
        return self.record.run.is_selected(name) or any(
            stage.stage.name == stage_name and index.isdecimal() and int(index) < stage.max_images
            for stage in self.plan.stages
        )

    def _on_done(self, task: asyncio.Task[None]) -> None:
        # A callback, because a task that is cancelled before its first step runs no line of its own.
        flow = self._flow
        if self._is_suspended or flow is None:
            self._end_span()
            return
        state: RunState.ValueType = RunState.RUN_STATE_CANCELLED
        if not task.cancelled():
            bug = task.exception()
            if bug is None:
                if flow.has_more:
                    self._end_span()
                    self._start()
                    return
                state, self.error = flow.outcome
            else:
                log.error("%s failed of a bug", self.record.name, exc_info=bug)
                state = RunState.RUN_STATE_FAILED
                self.error = TriptychError("internal error; see the gateway's log")
        if state == RunState.RUN_STATE_AWAITING_SELECTION:
            self._is_idle = True
            self.record.await_selection(flow.next_stage, flow.candidates)
            self._end_span()
            self._on_idle(self)
        else:
            self._finish(state)

    def _finish(self, state: RunState.ValueType) -> None:
        self._is_idle = True
        self.record.finish(state, self.error)
        self._end_span()
        self._on_idle(self)
