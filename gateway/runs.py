"""The runs of this gateway: begun once for each request_id, cancelled with their callers, kept for a while.

In memory: a run ends with the gateway's process.
"""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gateway.attempts import Patience
from gateway.flow import Flow
from gateway.plan import Plan
from gateway.pool import Pool
from gateway.record import Record
from gateway.selections import Selection, changed_models, find_selected, make_selection, number_children
from services.errors import AlreadyExists, InvalidRequest, NotFound, QueueFull, TriptychError
from triptych.v1.pipeline_pb2 import RunSpec, RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What this process holds at once. Of finished runs the oldest are forgotten first."""

    max_running: int = 64
    max_finished: int = 100
    max_finished_bytes: int = 256 * 2**20


class Run:
    """A run that is carried out, or was. `make_flow` gives a flow that begins from where the record stands."""

    def __init__(
        self, record: Record, plan: Plan, make_flow: Callable[[], Flow], *, caller: str, is_detached: bool
    ) -> None:
        self.record = record
        self.caller = caller
        self.plan = plan
        self.error: TriptychError | None = None
        # Detached runs go on without anybody who reads them.
        self.is_detached = is_detached
        self._num_readers = 0
        self._make_flow = make_flow
        self._go_on()

    def _go_on(self) -> None:
        """Begins with what the record says is left to do."""
        self._flow = self._make_flow()
        self._is_cancelled = False
        self._is_at_rest = False
        self._task = asyncio.create_task(self._flow.run(), name=self.record.name)
        self._task.add_done_callback(self._conclude)

    @property
    def is_finished(self) -> bool:
        return self.record.log.is_closed

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is done for it: it has finished, or waits to be given images."""
        return self._is_at_rest

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.record.files.values()))

    def attach(self) -> None:
        """Somebody reads the run, and it lives for them."""
        self._num_readers += 1

    def detach(self) -> None:
        """A reader went away; the last one takes the run along, unless it was to go on."""
        self._num_readers -= 1
        if not self._num_readers and not self.is_detached:
            self.request_cancel()

    def request_cancel(self) -> None:
        """Stops the work of all stages; of a finished run nothing changes."""
        if self._is_at_rest and not self.is_finished:
            self._finish(RunState.RUN_STATE_CANCELLED)
        elif not self.is_finished and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    async def select(self, request_id: str, asked: Sequence[Selection], pools: Mapping[str, Pool]) -> None:
        """Takes images to a stage, also of a run that had finished; once for each request_id.

        Raises InvalidRequest, AlreadyExists or NoWorker, and then nothing was begun.
        """
        if self._is_cancelled and not self._is_at_rest:
            await self.wait()
        history = self.record.history
        if find_selected(history, request_id, asked, self.plan):
            return
        selected = await make_selection(request_id, asked, self.plan, history, pools)
        # Once more: nothing is awaited from here to the record.
        if find_selected(history, request_id, asked, self.plan):
            return
        number_children(selected, self.plan, history)
        self.record.selected(selected)
        for model in changed_models(selected, self.plan):
            self.record.warn(
                "MODEL_CHANGED",
                f"nobody serves the model any more that this run began with; made with {model.name} {model.digest[:12]}",
            )
        if self._is_at_rest:
            self._go_on()
        else:
            self._flow.selected()

    async def cancel(self, images: Sequence[str] = ()) -> None:
        """Stops the run, or only these images, and returns when it is done. Raises InvalidRequest for a name it lacks."""
        if not images:
            self.request_cancel()
            await self.wait()
            return
        for place, name in enumerate(images):
            if not self._has_image(name):
                raise InvalidRequest(
                    f"images[{place}]", f"must be an image of {self.record.name}, got {name[:120]!r}"
                )
        self._flow.cancel_images(images)

    async def wait(self) -> None:
        """Returns when the run has finished, however that was."""
        await asyncio.wait([self._task])

    def _has_image(self, name: str) -> bool:
        stage_name, _, index = name.removeprefix(f"{self.record.name}/images/").rpartition("-")
        return self.record.history.is_selected(name) or any(
            stage.kind.name == stage_name and index.isdecimal() and int(index) < stage.max_images
            for stage in self.plan.stages
        )

    def _conclude(self, task: asyncio.Task[None]) -> None:
        # A callback, because a task that is cancelled before its first step runs no line of its own.
        state: RunState.ValueType = RunState.RUN_STATE_CANCELLED
        if not task.cancelled():
            bug = task.exception()
            if bug is None:
                if self._flow.has_more:
                    self._go_on()
                    return
                state, self.error = self._flow.outcome
            else:
                log.error("%s failed of a bug", self.record.name, exc_info=bug)
                state = RunState.RUN_STATE_FAILED
                self.error = TriptychError("internal error; see the gateway's log")
        if state == RunState.RUN_STATE_AWAITING_SELECTION:
            self._is_at_rest = True
            self.record.rest(self._flow.next_stage, self._flow.candidates)
        else:
            self._finish(state)

    def _finish(self, state: RunState.ValueType) -> None:
        self._is_at_rest = True
        self.record.finish(state, self.error)
        log.info("%s ended: %s", self.record.name, RunState.Name(state))


class Runs:
    """All runs, by name and by request_id."""

    def __init__(self, pools: Mapping[str, Pool], patience: Patience, bounds: Bounds) -> None:
        self._pools = pools
        self._patience = patience
        self._bounds = bounds
        self._runs: dict[str, Run] = {}
        # The run that a caller's request_id made, and a digest of what it asked for.
        self._requests: dict[tuple[str, str], tuple[str, bytes]] = {}

    def all(self) -> list[Run]:
        return list(self._runs.values())

    def get(self, name: str) -> Run:
        """Raises NotFound."""
        if (run := self._runs.get(name)) is None:
            raise NotFound(
                f"there is no run {name[:80]!r} here; runs are kept until the gateway stops, or "
                f"{self._bounds.max_finished} later ones have finished"
            )
        return run

    def find(self, request_id: str, spec: RunSpec, caller: str) -> Run | None:
        """The run that this request_id has made already; raises AlreadyExists when that was with another spec."""
        if not request_id or (caller, request_id) not in self._requests:
            return None
        name, digest = self._requests[caller, request_id]
        if digest != _digest(spec):
            raise AlreadyExists(
                f"request_id {request_id!r} made {name} from another spec; use a new request_id for a new run"
            )
        return self._runs[name]

    def begin(
        self,
        request_id: str,
        asked: RunSpec,
        plan: Plan,
        *,
        caller: str,
        is_detached: bool,
        timeout_s: float | None = None,
    ) -> Run:
        """Begins the run, or gives the one that the request_id has begun meanwhile. Raises QueueFull, AlreadyExists."""
        if run := self.find(request_id, asked, caller):
            return run
        if (
            num_running := sum(not run.is_at_rest for run in self._runs.values())
        ) >= self._bounds.max_running:
            raise QueueFull(f"{num_running} runs are under way; try again later", retry_after_s=5.0)
        self._forget_old_ones()
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        patience = Patience(self._patience.stall_timeout_s, self._patience.call_timeout_s, deadline)
        record = Record(
            f"runs/{secrets.token_hex(8)}", plan.spec, models=plan.models, init_images=plan.init_images
        )

        def make_flow() -> Flow:
            return Flow(plan, record, self._pools, patience, caller)

        run = Run(record, plan, make_flow, caller=caller, is_detached=is_detached)
        self._runs[record.name] = run
        if request_id:
            self._requests[caller, request_id] = record.name, _digest(asked)
        log.info("%s begins", record.name)
        return run

    async def close(self) -> None:
        """Cancels what still runs."""
        running = [run for run in self._runs.values() if not run.is_finished]
        for run in running:
            run.request_cancel()
        await asyncio.gather(*(run.wait() for run in running))

    def _forget_old_ones(self) -> None:
        finished = [name for name, run in self._runs.items() if run.is_finished]
        num_bytes = sum(self._runs[name].num_bytes for name in finished)
        for place, name in enumerate(finished):
            too_many = len(finished) - place > self._bounds.max_finished
            if not too_many and num_bytes <= self._bounds.max_finished_bytes:
                break
            num_bytes -= self._runs[name].num_bytes
            self.forget(name)

    def forget(self, name: str) -> None:
        """Keeps nothing of a finished run."""
        del self._runs[name]
        self._requests = {key: made for key, made in self._requests.items() if made[0] != name}


def _digest(spec: RunSpec) -> bytes:
    return hashlib.sha256(spec.SerializeToString(deterministic=True)).digest()
