"""The runs that this gateway carries out: accepted once for each request_id, taken up again after a restart or from a
gateway that died, cancelled when no client is left. Finished ones are in the journal alone.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from gateway.access.caller import Caller
from gateway.events.log_lines import log_event
from gateway.journal.database import JournalUnavailable
from gateway.journal.journal import Journal, NewRun
from gateway.journal.leases import Leases, PeerCommand
from gateway.journal.reader import RunRow
from gateway.planning.plan import Plan, restore_plan
from gateway.runs.abandonment import AbandonmentMonitor
from gateway.runs.admission import Admission, AdmissionLimits, AdmissionTicket
from gateway.runs.image_tasks import RunContext
from gateway.runs.memory_budget import WeightedSemaphore
from gateway.runs.peers import PeerCoordinator
from gateway.runs.recorder import RunRecorder, first_event
from gateway.runs.run import ActiveRun
from gateway.store.base import Store
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy
from services.errors import NotFound, NotReady, RunNotQueued, TriptychError
from services.serving.request_log import current_traceparent
from services.serving.tracing.log_fields import logging_with
from triptych.v1.pipeline_pb2 import (
    CancelRunRequest,
    Event,
    Image,
    MoveRunRequest,
    RunSpec,
    RunState,
    SelectImagesRequest,
)

log = logging.getLogger(__name__)

# Errors of runs that failed last, with all their details; older ones are made again from the journal.
MAX_FAILURES = 256


class StorageFailed(NotReady):
    reason = "STORAGE_FAILED"
    retry_after_s = 5.0


@dataclass(frozen=True)
class RunLimits:
    """What this process does at once, and how long it waits for a caller to come back."""

    room: AdmissionLimits = AdmissionLimits()
    # Of the pictures that are asked of the stages, as they are decoded there.
    max_bytes_under_way: int = 2**30
    # Runs that wait to be given images and stay in memory for it; more of them are in the journal alone.
    max_awaiting: int = 256
    abandon_grace_s: float = 10.0


class RunManager:
    """Use as a context: from entry on it carries out the unfinished runs of the journal."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        retry_policy: RetryPolicy,
        bounds: RunLimits,
        journal: Journal,
        store: Store,
    ) -> None:
        self.journal = journal
        self.store = store
        self.failures: dict[str, TriptychError] = {}
        self.is_stopping = False
        # While journal or store cannot be used, no run is accepted.
        self.storage_problem = ""
        # Called with whatever happens in a run from now on.
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_finished: Callable[[], None] = lambda: None
        self._bounds = bounds
        self._admission = Admission(bounds.room)
        self._context = RunContext(
            pools, retry_policy, self._admission, WeightedSemaphore(bounds.max_bytes_under_way)
        )
        self._leases = Leases(journal.database, journal.gateway)
        self._live: dict[str, ActiveRun] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Runs that were taken up again when they had come to rest: with their end alone they would stay this gateway's.
        self._claimed: set[str] = set()
        # A gateway that stops ends its calls itself: disconnects mean nothing then.
        self.abandonment = AbandonmentMonitor(
            lambda name: None if self.is_stopping else self._live.get(name),
            self._has_clients_elsewhere,
            grace_s=bounds.abandon_grace_s,
        )
        self._peers = PeerCoordinator(self._leases, self._execute, self._on_heartbeat)
        # Held from the planning of a new order of waiting runs until it is applied.
        self._moving = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._heartbeats: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RunManager"]:
        """Takes up what is left to do, and leaves at the end what is not done."""
        if self.journal.database.is_shared:
            await self._leases.heartbeat()
        await self.recover_all()
        if self.journal.database.is_shared:
            self._heartbeats = asyncio.create_task(self._peers.run_forever(), name="leases")
        try:
            yield self
        finally:
            await self.close()

    def live(self, name: str) -> ActiveRun | None:
        """The run, if this gateway carries it out."""
        live = self._live.get(name)
        return None if live is None or live.is_taken_over else live

    def num_in(self, state: RunState.ValueType) -> int:
        """How many of the runs that this gateway carries out are in that state. From any thread."""
        return sum(live.record.run.state == state for live in list(self._live.values()))

    @property
    def num_waiting(self) -> int:
        """Runs that wait for their ticket."""
        return self._admission.num_waiting

    def check_room(self, caller: Caller, *, is_in_turn: bool = False) -> None:
        """Raises QueueFull or RateLimited, or NotReady while the gateway stops."""
        if self.is_stopping:
            raise NotReady("this gateway is going away; call another one, or come back")
        if self.storage_problem:
            # What exactly is for the operator, in the log.
            raise StorageFailed(
                "this gateway's journal or store cannot be used now, so nothing is accepted; come back"
            )
        self._admission.check(caller.name, caller.limits, is_in_turn=is_in_turn)

    async def begin(
        self,
        request_id: str,
        asked: RunSpec,
        plan: Plan,
        *,
        caller: Caller,
        is_detached: bool,
        timeout_s: float | None = None,
        webhook_url: str = "",
        in_turn: bool = False,
    ) -> RunRow:
        """Accepts the run, which begins at its turn, or gives the one that the request_id has made meanwhile.

        Raises QueueFull, RateLimited, NotReady, JournalUnavailable or what the store raises, and then there is no run.
        """
        self.check_room(caller, is_in_turn=in_turn)
        name = f"runs/{secrets.token_hex(8)}"
        ticket = self._admission.enter(caller.name, caller.limits, run=name, is_in_turn=in_turn)
        deadline_ns = None if timeout_s is None else time.time_ns() + int(timeout_s * 1e9)
        digest = digest_of(asked, webhook_url)
        new = NewRun(
            caller.name,
            request_id,
            digest,
            is_detached,
            deadline_ns,
            webhook_url,
            current_traceparent(),
            ticket.order,
            in_turn,
        )
        # Not to be left half done when the caller goes away: an accepted run is begun.
        return await asyncio.shield(self._start(self._accept(name, new, plan, ticket)))

    async def _accept(self, name: str, new: NewRun, plan: Plan, ticket: AdmissionTicket) -> RunRow:
        try:
            row = await self._persist(name, new, plan, ticket)
        except BaseException:
            ticket.leave()
            raise
        if row.name != name:
            ticket.leave()
        return row

    def _write(self, record: RunRecorder, event: Event) -> None:
        log_event(record.name, event)
        self.on_event(event)
        self.journal.write(record, event)
        if event.HasField("finished"):
            self.on_finished()

    async def _persist(self, name: str, new: NewRun, plan: Plan, ticket: AdmissionTicket) -> RunRow:
        init_images = {}
        for index, picture in enumerate(plan.init_images):
            image = Image(
                name=f"{name}/images/init-{index}",
                index=index,
                width=picture.width,
                height=picture.height,
                mime_type=picture.mime_type,
                sha256=await self.store.put(picture.data),
            )
            init_images[image.name] = image
        for file in plan.attachments:
            await self.store.put(file.data)
        first = first_event(name, plan.spec, plan.models, plan.reading)
        row = await self.journal.add_run(name, new, first, init_images)
        if row.name == name:
            record = RunRecorder([first], self._write, self.store, init_images)
            for reason, message in plan.warnings.items():
                record.notice(reason, message)
            self._carry_out(record, plan, row, ticket)
            with logging_with(run=name):
                log.info("%s is accepted", name, extra={"event": "run_accepted"})
        return row

    async def _claim_or_load(self, name: str) -> ActiveRun | None:
        """The run, carried out here from now on; None where another living gateway has it. Raises NotFound.

        Its lock is held.
        """
        self._drop_taken_over()
        live = self._live.get(name)
        if live is not None and live.is_finished:
            # It is nobody's since, so another gateway may have taken it up again.
            await self._drop(live)
        elif live is not None:
            return live
        if self.is_stopping:
            raise NotReady("this gateway is going away; call another one, or come back")
        if not await self._leases.claim(name):
            if await self.journal.reader.find_run(name) is None:
                raise NotFound(f"there is no run {name[:80]!r} here")
            return None
        live = await self._recover(name)
        if live.is_idle:
            self._claimed.add(name)
        return live

    async def flush(self, live: ActiveRun) -> None:
        """Returns when all that has happened so far is in the journal. Raises JournalUnavailable."""
        await self.journal.flush(live.record)

    async def cancel(self, name: str, images: Sequence[str]) -> None:
        """Stops a run that has not finished, or these images of it, here or where it is carried out."""
        async with self._lock_of(name):
            live = await self._claim_or_load(name)
        if live is None:
            request = CancelRunRequest(name=name, images=images)
            await self._peers.send(name, "cancel", request.SerializeToString())
            return
        try:
            live.cancel(images)
            if not images:
                await live.wait()
            await self.flush(live)
        finally:
            if live.is_finished:
                self._start(self.evict(live))
        if live.is_taken_over and not live.is_written:
            # Another gateway has taken it over before this could be written.
            await self.cancel(name, images)

    async def move(self, request: MoveRunRequest) -> None:
        """Moves a run that waits to begin, here or where it is carried out. Raises RunNotQueued, InvalidRequest."""
        async with self._lock_of(request.name):
            live = await self._claim_or_load(request.name)
        if live is None:
            await self._peers.send(request.name, "move", request.SerializeToString())
            return
        try:
            await self._move(live, request)
        finally:
            if live.is_finished:
                self._start(self.evict(live))

    async def _move(self, live: ActiveRun, request: MoveRunRequest) -> None:
        async with self._moving:
            ticket = live.ticket
            if ticket is None or not ticket.is_waiting:
                raise RunNotQueued(f"{live.name} does not wait to begin")
            to = request.WhichOneof("to")
            anchor = {to: getattr(request, to)} if to in ("before", "after") else {}
            orders = self._admission.plan_move(ticket, **anchor)
            in_turn = ticket.is_in_turn and not request.now
            # Written first, as everything that a caller sees.
            await self.journal.move_run(live.name, orders, in_turn=in_turn)
            self._admission.move(ticket, orders, is_in_turn=in_turn)

    async def select(
        self,
        request_id: str,
        name: str,
        selections: Sequence[SelectImagesRequest.Selection],
        *,
        max_images: int | None = None,
    ) -> None:
        """Takes images to a stage, here or where the run is carried out. Raises what ActiveRun.select does.

        `max_images` is what the caller may have of one run.
        """
        async with self._lock_of(name):
            live = await self._claim_or_load(name)
            if live is not None:
                if live.is_finished:
                    # Its clients have seen its end.
                    await self.detach(name)
                try:
                    await live.select(request_id, selections, max_images=max_images)
                finally:
                    if live.is_finished:
                        self._start(self.evict(live))
        if live is None:
            request = SelectImagesRequest(request_id=request_id, name=name, selections=selections)
            await self._peers.send(name, "select", request.SerializeToString(), max_images=max_images)
        else:
            await self.flush(live)

    async def detach(self, name: str) -> None:
        """Detaches the run: it continues without clients."""
        await self.journal.detach(name)
        if (live := self._live.get(name)) is not None:
            live.is_detached = True

    async def close(self, grace_s: float = 0.0) -> None:
        """Waits so long for runs to finish, then leaves them as they stand: they go on at the next start, or elsewhere."""
        self.is_stopping = True
        if busy := [live for live in self._live.values() if not live.is_idle]:
            waiting = [asyncio.ensure_future(live.wait()) for live in busy]
            await asyncio.wait(waiting, timeout=grace_s)
            for task in waiting:
                task.cancel()
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        self._admission.close()
        self.abandonment.close()
        for task in list(self._tasks):
            task.cancel()
        left = [live for live in self._live.values() if not live.is_idle]
        await asyncio.gather(*(live.suspend() for live in self._live.values()))
        if left:
            log.info("%d runs are left as they stand; they go on when this gateway starts again", len(left))
        try:
            await asyncio.gather(*(self.flush(live) for live in self._live.values()))
            await self._leases.release_all()
        except JournalUnavailable as error:
            log.error("%s", error)  # noqa: TRY400 - the message is enough
        for live in self._live.values():
            live.record.log.disown()
        self._live.clear()

    def _carry_out(
        self, record: RunRecorder, plan: Plan, row: RunRow, ticket: AdmissionTicket | None = None
    ) -> ActiveRun:
        live = ActiveRun(
            record,
            plan,
            self._context,
            caller=row.caller,
            is_detached=row.is_detached,
            on_idle=self._on_idle,
            ticket=ticket,
            deadline_ns=None if row.is_detached else row.deadline_ns,
        )
        self._live[record.name] = live
        if not live.is_idle:
            self.abandonment.start_grace_period(record.name)
        return live

    async def _has_clients_elsewhere(self, name: str) -> bool:
        return self.journal.database.is_shared and await self._leases.has_clients(name)

    async def _on_heartbeat(self) -> None:
        followed = [name for name in self.abandonment.names if name not in self._live]
        await self._leases.heartbeat_clients(followed)
        await self.recover_all()

    async def _execute(self, command: PeerCommand) -> None:
        """Does what another gateway asks of a run of this one."""
        if command.kind == "cancel":
            await self.cancel(command.run, CancelRunRequest.FromString(command.payload).images)
        elif command.kind == "move":
            await self.move(MoveRunRequest.FromString(command.payload))
        else:
            asked = SelectImagesRequest.FromString(command.payload)
            most = command.max_images
            await self.select(asked.request_id, command.run, asked.selections, max_images=most)

    async def recover_all(self) -> None:
        """Carries out what no living gateway does, and leaves what another one has taken over."""
        for name in await self._leases.claim_open():
            async with self._lock_of(name):
                if name not in self._live:
                    log.info("%s goes on", name, extra={"event": "run_continued", "run": name})
                    try:
                        await self._recover(name)
                    except JournalUnavailable:
                        raise
                    except Exception:  # one run that cannot go on keeps no other from it
                        log.exception("%s cannot go on", name)
        self._drop_taken_over()

    async def _recover(self, name: str) -> ActiveRun:
        """Makes a run live from its rows in the journal; this gateway owns it already."""
        row = await self.journal.reader.find_run(name)
        events = await self.journal.reader.read_log(name)
        if row is None or not events:
            raise NotFound(f"there is no run {name[:80]!r} here")
        record = RunRecorder(
            events,
            self._write,
            self.store,
            await self.journal.reader.init_images(name),
            traceparent=row.traceparent or "",
        )
        began = events[0].state
        reading = began.prompt_reading if began.HasField("prompt_reading") else None
        plan = restore_plan(began.spec, began.models, (), reading)
        ticket = None
        if record.run.has_work:
            # Only what has not begun yet waits for other runs of its caller.
            is_new = record.run.state == RunState.RUN_STATE_QUEUED and not record.run.is_plan_done
            ticket = self._admission.enter(
                row.caller,
                run=name,
                is_in_turn=is_new and bool(row.in_turn),
                order=row.place,
                was_accepted=True,
            )
        return self._carry_out(record, plan, row, ticket)

    def _on_idle(self, live: ActiveRun) -> None:
        if live.error is not None:
            self.failures[live.name] = live.error
            while len(self.failures) > MAX_FAILURES:
                del self.failures[next(iter(self.failures))]
        if live.is_finished:
            self._start(self.evict(live))
            return
        awaiting = [one for one in self._live.values() if one.is_idle and not one.is_finished]
        if len(awaiting) > self._bounds.max_awaiting:
            oldest = next((one for one in awaiting if one.name not in self.abandonment), None)
            if oldest is not None:
                self._start(self.evict(oldest))

    async def evict(self, live: ActiveRun) -> None:
        """Evicts an idle run from memory; it stays in the journal."""
        async with self._lock_of(live.name):
            if self._live.get(live.name) is live and live.is_idle:
                await self._drop(live)
                if not live.is_finished or live.name in self._claimed:
                    self._claimed.discard(live.name)
                    await self._leases.release([live.name])

    async def _drop(self, live: ActiveRun) -> None:
        await live.record.log.flushed()
        if live.is_idle:
            del self._live[live.name]
            live.record.log.disown()

    def _lock_of(self, name: str) -> asyncio.Lock:
        """Held while it is decided who carries out the run."""
        if (lock := self._locks.get(name)) is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def _drop_taken_over(self) -> None:
        """Stops what another gateway has taken over while this one was silent."""
        for live in list(self._live.values()):
            if live.is_taken_over:
                log.warning("%s was taken over by another gateway", live.name)
                del self._live[live.name]
                self._start(live.suspend())

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def digest_of(spec: RunSpec, webhook_url: str = "") -> bytes:
    """Of what a caller asked for: the same request_id with something else is an error."""
    asked = spec.SerializeToString(deterministic=True) + webhook_url.encode()
    return hashlib.sha256(asked).digest()
