"""The workers of one stage: found by address or name, checked for health, chosen by who has least to do.

One channel per worker: gRPC's own round robin over a name does not find replicas that are added while old
connections live. It knows nothing of runs.
"""

import asyncio
import ipaddress
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.stages import StageKind
from services.channels import open_channel
from services.errors import NoWorker
from services.tls import CertificateFiles, Certificates
from triptych.v1.stage_pb2 import ModelInfo

log = logging.getLogger(__name__)

CHECK_EVERY_S = 2.0
# A stage whose device keeps the processor busy answers late, and is not dead for that.
CHECK_TIMEOUT_S = 5.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class Target:
    """Where workers are: one at host:port, or (`is_name`) one at every address that the name resolves to."""

    host: str
    port: int
    is_name: bool = False

    def __str__(self) -> str:
        return f"dns:{self.host}:{self.port}" if self.is_name else join(self.host, self.port)


def parse_target(text: str) -> Target:
    """Reads "host:port" or "dns:name:port"; raises ValueError that says what was expected."""
    is_name = text.startswith("dns:")
    host, _, port = text.removeprefix("dns:").lstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"expected HOST:PORT or dns:NAME:PORT, got {text!r}")
    return Target(host, int(port), is_name)


def join(host: str, port: int) -> str:
    """ "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve_name(name: str, port: int) -> Sequence[str]:
    """Every address of a name; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port)
    return sorted({str(ipaddress.ip_address(address[4][0])) for address in found})


@dataclass(eq=False)
class Worker:
    """A process that serves the stage. `problem` is empty while it can be given work."""

    address: str
    channel: grpc.aio.Channel
    problem: str = "not asked yet"
    model: ModelInfo = field(default_factory=ModelInfo)
    # Images that this gateway has asked of it and that are not done.
    outstanding: int = 0
    # No longer at its name: gets nothing new and is closed when it has no work left.
    gone: bool = False
    # What the channel was opened with.
    certificates: Certificates | None = None


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
    ) -> None:
        self.kind = kind
        self.targets = tuple(targets)
        self._check_every_s = check_every_s
        self._resolve = resolve
        self._certificates = certificates
        # Those whose channel has the certificates from before a change: closed when they have no work left.
        self._replaced: list[Worker] = []
        self._workers: dict[str, Worker] = {}
        self._resolved: dict[Target, list[str]] = {}
        self._unresolved: dict[Target, str] = {}
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

    async def choose(self, digest: str, *, but: Collection[str] = ()) -> Worker:
        """The worker with that model and the fewest images to do, none of the addresses `but`; raises NoWorker."""
        await self._refresh_until(lambda: self._candidates(digest, but))
        if found := self._candidates(digest, but):
            return found[0]
        if self.healthy and not but:
            raise NoWorker(
                f"no {self.kind.worker} has the model that this run began with any more; start the run again"
            )
        raise NoWorker(self._why_none())

    def _candidates(self, digest: str, but: Collection[str]) -> list[Worker]:
        able = [
            worker for worker in self.healthy if worker.model.digest == digest and worker.address not in but
        ]
        return sorted(able, key=lambda worker: worker.outstanding)

    @contextmanager
    def working(self, worker: Worker) -> Iterator[None]:
        """Counts one image as the worker's, inside the block."""
        worker.outstanding += 1
        try:
            yield
        finally:
            worker.outstanding -= 1

    def distrust(self, worker: Worker, problem: str) -> None:
        """Gives the worker nothing new until it has answered a health check."""
        self._note(worker, problem)

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
            await asyncio.sleep(self._check_every_s)

    async def _refresh(self) -> None:
        found = await asyncio.gather(*map(self._addresses, self.targets))
        # Behind a name every worker proves to be the name, whatever address it has.
        server_names = {
            address: target.host if target.is_name else None
            for target, those in zip(self.targets, found, strict=True)
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
                    worker.problem, worker.model = known.problem, known.model
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
        await asyncio.gather(*(self._check(self._workers[address]) for address in addresses))

    async def _addresses(self, target: Target) -> list[str]:
        if not target.is_name:
            return [str(target)]
        try:
            hosts = await self._resolve(target.host, target.port)
        except OSError as error:
            # A name server that hiccups takes no worker away: those that were found keep their health checks.
            self._unresolved[target] = f"the name does not resolve: {error.strerror or error}"
            return self._resolved.get(target, [])
        self._unresolved.pop(target, None)
        self._resolved[target] = [join(host, target.port) for host in hosts]
        return self._resolved[target]

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
        if worker.problem:
            log.info("%s %s serves '%s'", self.kind.worker, worker.address, answer.model.name)
        worker.model, worker.problem = answer.model, ""

    def _note(self, worker: Worker, problem: str) -> None:
        if problem != worker.problem:
            log.warning("%s %s can be given no work: %s", self.kind.worker, worker.address, problem)
        worker.problem = problem

    def _why_none(self) -> str:
        name = self.kind.worker
        start = f"start one with `triptych serve {name}` and name it to the gateway with --{name} HOST:PORT"
        if not self.targets:
            return f"no {name} is known to the gateway: {start}"
        tried = [
            f"{worker.address} ({worker.problem})" for worker in self._workers.values() if worker.problem
        ]
        tried += [f"{target} ({problem})" for target, problem in self._unresolved.items()]
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
