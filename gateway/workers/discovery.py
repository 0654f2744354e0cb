"""Discovers the workers of one stage: resolves names and polls health.

One channel per worker: gRPC's own round robin over a name does not find replicas that are added while old
connections live.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stages import Stage
from gateway.workers.targets import Resolve, Resolver, Target, resolve_name
from gateway.workers.worker import Worker
from services.serving.channels import open_channel
from services.serving.tls import CertificateFiles

log = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
# A stage whose device keeps the processor busy answers late, and is not dead for that.
CHECK_TIMEOUT_S = 5.0

ListTargets = Callable[[], Awaitable[Sequence[Target]]]


class Discovery:
    """Use as a context manager: it asks after the workers' health from entry to exit."""

    def __init__(
        self,
        stage: Stage,
        targets: Sequence[Target],
        *,
        check_every_s: float = CHECK_EVERY_S,
        resolve: Resolve = resolve_name,
        certificates: CertificateFiles | None = None,
        more_targets: ListTargets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self.targets = tuple(targets)
        self.clock = clock
        # Called when a worker may be given work that could not before, or none any more.
        self.on_change: Callable[[], None] = lambda: None
        # Those that a list has now, beside the ones that are always there.
        self._more_targets = more_targets
        self._check_every_s = check_every_s
        self._resolver = Resolver(resolve)
        self._certificates = certificates
        # Those whose channel has the certificates from before a change: closed when they have no work left.
        self._replaced: list[Worker] = []
        self._workers: dict[str, Worker] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch(), name=f"watch {self.stage.worker_name}s")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._watching, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._resolver.close()
        workers = [*self._workers.values(), *self._replaced]
        await asyncio.gather(*(worker.channel.close() for worker in workers))
        self._workers.clear()
        self._replaced.clear()

    @property
    def workers(self) -> list[Worker]:
        """All that are known, healthy or not."""
        return list(self._workers.values())

    @property
    def healthy(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if not worker.problem and not worker.gone]

    async def refresh(self) -> None:
        """Resolves the names and asks after every worker now; callers at the same time share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def refresh_until(self, found: Callable[[], Sequence[Worker]]) -> None:
        """Asks after the workers unless some that serve the purpose are known."""
        # Twice: the round that is under way may have asked before the worker was there.
        for _ in range(2):
            if not found():
                await self.refresh()

    def note(self, worker: Worker, problem: str) -> None:
        """The worker can be given no work until it has been found healthy again."""
        if problem != worker.problem:
            log.warning(
                "%s %s can be given no work: %s",
                self.stage.worker_name,
                worker.address,
                problem,
                extra={"event": "worker_unavailable", "stage": self.stage.name, "worker": worker.address},
            )
        worker.problem = problem
        self.on_change()

    def why_none(self) -> str:
        """Which workers were tried, why none can be given work, and what to do."""
        name = self.stage.worker_name
        start = f"start one with `triptych serve {name}` and name it to the gateway with --{name} HOST:PORT"
        if not self.targets and not self._workers:
            return f"no {name} is known to the gateway: {start}"
        tried = [
            f"{worker.address} ({worker.problem})" for worker in self._workers.values() if worker.problem
        ]
        tried += [f"{target} ({problem})" for target, problem in self._resolver.problems.items()]
        return f"no {name} can be given work: tried {', '.join(tried) or 'none'}; {start}"

    async def _watch(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("asking after the %ss failed", self.stage.worker_name)
            now = self.clock()
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
        self.on_change()
        await asyncio.gather(*(self._check(self._workers[address]) for address in addresses))

    async def _check(self, worker: Worker) -> None:
        checks: Any = health_pb2_grpc.HealthStub(worker.channel)  # its type stubs leave the methods out
        stub = self.stage.make_stub(worker.channel)
        try:
            request = health_pb2.HealthCheckRequest(service=self.stage.service)
            health = await checks.Check(request, timeout=CHECK_TIMEOUT_S)
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                self.note(worker, "it is starting up or draining")
                return
            answer = await stub.GetModel(self.stage.get_model_request(), timeout=CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self.note(worker, _explain(error, self.stage.worker_name))
            return
        if self.clock() < worker.paused_until:
            return
        if worker.problem:
            log.info(
                "%s %s serves '%s'",
                self.stage.worker_name,
                worker.address,
                answer.model.name,
                extra={
                    "event": "worker_available",
                    "stage": self.stage.name,
                    "worker": worker.address,
                    "model": answer.model.name,
                },
            )
        is_news = worker.problem or worker.model.digest != answer.model.digest
        worker.model, worker.problem = answer.model, ""
        if is_news:
            self.on_change()


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
