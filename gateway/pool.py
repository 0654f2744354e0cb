"""The workers of one stage: checked for health, trusted by what became of their work, chosen by who has least to do.

One channel per worker: gRPC's own round robin over a name does not find replicas that are added while old
connections live. It knows nothing of runs.
"""

import asyncio
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.line import Line, Look, Waiter
from gateway.stages import StageKind
from gateway.targets import Resolve, Resolver, Target, resolve_name
from gateway.worker import Worker
from services.channels import open_channel
from services.errors import NoWorker, TriptychError
from services.tls import CertificateFiles
from triptych.v1.stage_pb2 import ModelInfo

log = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
# A stage whose device keeps the processor busy answers late, and is not dead for that.
CHECK_TIMEOUT_S = 5.0

# A worker that a call was lost on is given nothing for a while, though it may answer its health check at once: so long
# at first, twice as long each time, until a picture of it arrives. One that stalled is left alone for longer, since what
# hangs is often the device, of which the health check knows nothing.
LOST_PAUSE_S, STALL_PAUSE_S, LONGEST_PAUSE_S = 1.0, 5.0, 300.0
# So many answers that cannot be right, one after the other, and it is taken for broken as a whole.
MAX_BROKEN_ANSWERS = 3

ListTargets = Callable[[], Awaitable[Sequence[Target]]]


class ModelGone(NoWorker):
    """There are workers, and none has the model that the run began with."""

    reason = "MODEL_GONE"


class Pool:
    """The workers of one stage. Use as a context manager: it asks after their health from entry to exit."""

    def __init__(
        self,
        kind: StageKind,
        targets: Sequence[Target],
        *,
        check_every_s: float = CHECK_EVERY_S,
        resolve: Resolve = resolve_name,
        certificates: CertificateFiles | None = None,
        more_targets: ListTargets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.targets = tuple(targets)
        # Those that a list has now, beside the ones that are always there.
        self._more_targets = more_targets
        self._check_every_s = check_every_s
        self._resolver = Resolver(resolve)
        self._clock = clock
        self._certificates = certificates
        # Those whose channel has the certificates from before a change: closed when they have no work left.
        self._replaced: list[Worker] = []
        self._workers: dict[str, Worker] = {}
        self._line = Line(clock)
        # Set, and replaced, when a worker may be given work that could not before.
        self._changed = asyncio.Event()
        self._refreshing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.kind.worker}s")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._watching, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._line.close()
        await self._resolver.close()
        workers = [*self._workers.values(), *self._replaced]
        await asyncio.gather(*(worker.channel.close() for worker in workers))
        self._workers.clear()
        self._replaced.clear()

    @property
    def healthy(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if not worker.problem and not worker.gone]

    async def require(self) -> list[Worker]:
        """The workers that can be given work, asked anew if none is known; raises NoWorker."""
        await self._refresh_until(lambda: self.healthy)
        if not self.healthy:
            raise NoWorker(self._why_none())
        return self.healthy

    async def choose(
        self,
        digest: str,
        *,
        but: Collection[str] = (),
        rather_not: Collection[str] = (),
        alone: bool = False,
        patience_s: float = 0.0,
        waiter: Waiter | None = None,
    ) -> Worker:
        """The worker with that model and the fewest images to do, none of the addresses `but`.

        Those of `rather_not` only where there is no other; `alone`, once it has nothing else to do; a `waiter` also
        waits until one has room. Then `working` has to follow at once. Waits so long for one that can be given work;
        raises NoWorker, and DeadlineExceeded for a waiter.
        """
        until = self._clock() + patience_s
        await self._refresh_until(lambda: self._candidates(digest, but))
        while True:
            changed = self._changed
            if waiter is None or alone:
                found = self._candidates(digest, but)
                worker = min(found, key=lambda one: (one.address in rather_not, one.load), default=None)
            else:
                worker = await self._take_room(digest, but, rather_not, waiter)
            if worker is not None:
                if not alone or await self._empty(worker):
                    return worker
                continue
            left_s = until - self._clock()
            if left_s <= 0:
                raise self._none_for(digest)
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                continue

    @property
    def num_waiting(self) -> int:
        """Pictures that wait for a worker to have room."""
        return len(self._line)

    def has(self, digest: str, *, but: Collection[str]) -> bool:
        """Whether a worker could be given a picture of that model now."""
        return bool(self._candidates(digest, but))

    async def _take_room(
        self, digest: str, but: Collection[str], rather_not: Collection[str], waiter: Waiter
    ) -> Worker | None:
        """The worker with room that has least to do, at the waiter's turn; None where none may be given the picture."""
        look = functools.partial(self._look, digest, but, rather_not)
        while (found := look()).has_to_wait:
            kind = f"{digest} {sorted(but)} {sorted(rather_not)}"
            worker = await self._line.wait(waiter, kind, look)
            if worker is not None:
                worker.promised -= 1
                if worker in self._candidates(digest, but):
                    return worker
                self._line.serve()
        return found.worker

    def _look(self, digest: str, but: Collection[str], rather_not: Collection[str]) -> Look:
        found = self._candidates(digest, but)
        better = [worker for worker in found if worker.address not in rather_not] or found
        free = [worker for worker in better if not worker.is_full]
        if free or not found:
            return Look(min(free, key=lambda worker: worker.load, default=None))
        # One that becomes free as soon as any: what waits there already goes first.
        num_ahead = min(worker.load - worker.model.limits.num_slots for worker in better)
        waits = [worker.pace.wait_s(num_ahead) for worker in better]
        known = [wait_s for wait_s in waits if wait_s is not None]
        return Look(has_to_wait=True, num_ahead=num_ahead, wait_s=min(known, default=None))

    async def _empty(self, worker: Worker) -> bool:
        """Reserves the worker and waits until its work is done; false where it is lost over that."""
        worker.is_reserved = True
        is_empty = False
        try:
            while worker.outstanding and worker in self.healthy:
                await self._changed.wait()
            is_empty = worker in self.healthy
        finally:
            worker.is_reserved = is_empty
        return is_empty

    def _candidates(self, digest: str, but: Collection[str]) -> list[Worker]:
        return [
            worker
            for worker in self.healthy
            if worker.model.digest == digest and worker.address not in but and worker.has_room
        ]

    def _none_for(self, digest: str) -> NoWorker:
        if self.healthy and not any(worker.model.digest == digest for worker in self._workers.values()):
            return ModelGone(
                f"no {self.kind.worker} has the model that this run began with any more ({digest[:12]}); start one "
                "that has it, or start the run again"
            )
        return NoWorker(self._why_none())

    @contextmanager
    def working(self, worker: Worker, *, alone: bool = False) -> Iterator[None]:
        """Counts one image as the worker's, inside the block; it gets no other there if it was chosen `alone`."""
        worker.outstanding += 1
        try:
            yield
        finally:
            worker.outstanding -= 1
            if worker.is_on_probation or worker.is_reserved:
                self._tell_changed()
            worker.is_reserved = worker.is_reserved and not alone
            self._line.serve()

    def heard(self, worker: Worker) -> None:
        """The worker said something of a picture."""
        worker.heard_at = self._clock()

    def succeeded(self, worker: Worker) -> None:
        """A picture of the worker arrived: what was held against it is forgotten."""
        worker.num_losses = worker.num_broken_answers = 0
        if worker.is_on_probation:
            worker.is_on_probation = False
            self._tell_changed()

    def failed(self, worker: Worker, error: TriptychError) -> None:
        """A call to the worker failed; all that it had when it was lost count as one loss.

        A single answer that cannot be right may be the picture's fault; several in a row are the worker's.
        """
        match error.reason:
            case "WORKER_LOST":
                self._pause(worker, "its call broke off", LOST_PAUSE_S)
            case "WORKER_EVICTED" | "NOT_READY":
                self._note(worker, "it is starting up or draining")
            case "WORKER_BROKEN":
                worker.num_broken_answers += 1
                if worker.num_broken_answers >= MAX_BROKEN_ANSWERS:
                    self._pause(worker, str(error), STALL_PAUSE_S)

    def stalled(self, worker: Worker, problem: str, silence_s: float) -> None:
        """A picture has made no progress for so long; those who wait in the queue behind it had better leave.

        Where the worker has gone on with others meanwhile it is the picture, and nothing is held against the worker.
        """
        if self._clock() - worker.heard_at < silence_s / 2:
            return
        self._pause(worker, problem, STALL_PAUSE_S)
        for leave in list(worker.on_stall):
            leave()

    def _pause(self, worker: Worker, problem: str, first_s: float) -> None:
        if worker.problem:
            return
        pause_s = min(first_s * 2**worker.num_losses, LONGEST_PAUSE_S)
        worker.is_on_probation = worker.num_losses > 0 or first_s == STALL_PAUSE_S
        worker.num_losses += 1
        worker.paused_until = self._clock() + pause_s
        self._note(worker, f"{problem}; it is given nothing for {pause_s:g} s")

    async def refresh(self) -> None:
        """Resolves the names and asks after every worker now; callers at the same time share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def _refresh_until(self, found: Callable[[], Sequence[Worker]]) -> None:
        # Twice: the round that is under way may have asked before the worker was there.
        for _ in range(2):
            if not found():
                await self.refresh()

    async def _watch(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("asking after the %ss failed", self.kind.worker)
            now = self._clock()
            ends = [worker.paused_until for worker in self._workers.values() if worker.paused_until > now]
            await asyncio.sleep(min([self._check_every_s, *(end - now for end in ends)]))

    async def _refresh(self) -> None:
        listed = await self._more_targets() if self._more_targets is not None else ()
        targets = list(dict.fromkeys([*self.targets, *listed]))
        found = await asyncio.gather(*map(self._resolver.addresses, targets))
        # Behind a name every worker proves to be the name, whatever address it has.
        server_names = {
            address: target.host if target.is_name else None
            for target, those in zip(targets, found, strict=True)
            for address in those
        }
        addresses = list(server_names)
        certificates = self._certificates.current() if self._certificates else None
        for address, server_name in server_names.items():
            known = self._workers.get(address)
            if known is None or known.certificates is not certificates:
                channel = open_channel(address, certificates, server_name=server_name)
                worker = Worker(address, channel, certificates=certificates)
                if known is not None:
                    worker.take_over(known)
                    self._replaced.append(known)
                self._workers[address] = worker
            self._workers[address].gone = False
        for worker in [worker for worker in self._replaced if not worker.outstanding]:
            self._replaced.remove(worker)
            await worker.channel.close()
        for worker in [worker for worker in self._workers.values() if worker.address not in addresses]:
            worker.gone = True
            if not worker.outstanding:
                del self._workers[worker.address]
                await worker.channel.close()
        # Those who wait for one that is gone now had better not.
        self._line.serve()
        await asyncio.gather(*(self._check(self._workers[address]) for address in addresses))

    async def _check(self, worker: Worker) -> None:
        checks: Any = health_pb2_grpc.HealthStub(worker.channel)  # its type stubs leave the methods out
        stub = self.kind.make_stub(worker.channel)
        try:
            request = health_pb2.HealthCheckRequest(service=self.kind.service)
            health = await checks.Check(request, timeout=CHECK_TIMEOUT_S)
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                self._note(worker, "it is starting up or draining")
                return
            answer = await stub.GetModel(self.kind.get_model_request(), timeout=CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._note(worker, _explain(error, self.kind.worker))
            return
        if self._clock() < worker.paused_until:
            return
        if worker.problem:
            log.info("%s %s serves '%s'", self.kind.worker, worker.address, answer.model.name)
        is_news = worker.problem or worker.model.digest != answer.model.digest
        worker.model, worker.problem = answer.model, ""
        if is_news:
            self._tell_changed()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._line.serve()

    def _note(self, worker: Worker, problem: str) -> None:
        if problem != worker.problem:
            log.warning("%s %s can be given no work: %s", self.kind.worker, worker.address, problem)
        worker.problem = problem
        self._line.serve()

    def _why_none(self) -> str:
        name = self.kind.worker
        start = f"start one with `triptych serve {name}` and name it to the gateway with --{name} HOST:PORT"
        if not self.targets and not self._workers:
            return f"no {name} is known to the gateway: {start}"
        tried = [
            f"{worker.address} ({worker.problem})" for worker in self._workers.values() if worker.problem
        ]
        tried += [f"{target} ({problem})" for target, problem in self._resolver.problems.items()]
        return f"no {name} can be given work: tried {', '.join(tried) or 'none'}; {start}"


def models_of(workers: Sequence[Worker]) -> list[tuple[ModelInfo, int]]:
    """The different models that the workers serve, each with how many do, most first."""
    by_digest: dict[str, list[Worker]] = defaultdict(list)
    for worker in workers:
        by_digest[worker.model.digest].append(worker)
    groups = sorted(by_digest.values(), key=len, reverse=True)
    return [(group[0].model, len(group)) for group in groups]


def _explain(error: grpc.aio.AioRpcError, worker: str) -> str:
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return "nobody answers there"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {CHECK_TIMEOUT_S:g} s"
        case grpc.StatusCode.NOT_FOUND | grpc.StatusCode.UNIMPLEMENTED:
            return f"what answers there is no {worker}"
        case code:
            return f"its health check ended with {code.name}"
