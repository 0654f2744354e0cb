"""The gateway's composition root: opens the storage, builds the pools, serves gRPC and HTTP."""

import asyncio
import functools
import logging
import os
import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.access.authentication import Authentication
from gateway.grpc_service import SERVICE, PipelineService
from gateway.http.context import RequestContext
from gateway.http.image_files.example_gallery import ExampleGallery
from gateway.http.middleware.proxies import TrustedProxies
from gateway.http.server import serving_http
from gateway.journal.journal import Journal, open_journal
from gateway.journal.storage_audit import Differences, StorageAudit
from gateway.metrics import GatewayMetrics
from gateway.pipeline import Pipeline
from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits, RunManager
from gateway.runs.retention import Retention, RetentionLimits
from gateway.stages import STAGES
from gateway.storage_health import StorageHealth, check_pair
from gateway.store import open_store
from gateway.store.base import InvalidStore, Store
from gateway.webhooks.options import WebhookOptions
from gateway.webhooks.policy import WebhookPolicy
from gateway.webhooks.queue import WebhookQueue
from gateway.webhooks.sender import WebhookSender
from gateway.workers.discovery import Discovery
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.targets import Target, WorkersFile
from services.serving.limits.request_budget import RequestBudget
from services.serving.metrics import serving_metrics
from services.serving.request_log import RequestLog
from services.serving.server import announce, serving, stop_signal
from services.serving.tls import CertificateFiles
from triptych import __version__
from triptych._redaction import without_passwords
from triptych.v1.pipeline_pb2_grpc import add_PipelineServiceServicer_to_server

log = logging.getLogger(__name__)

NOWHERE = "none"
# To health checks: whether the store has all pictures of the journal. A gateway that lacks some serves the others.
STORAGE = "triptych.storage"


@dataclass(frozen=True)
class StorageLocations:
    """A journal's path or URL, or "none" for one that ends with the process; a store's, "" beside the journal."""

    journal: str = ""
    store: str = ""
    keep: RetentionLimits = RetentionLimits()
    # The store is this journal's from now on, whatever it was before.
    adopts_store: bool = False


@asynccontextmanager
async def open_storage(locations: StorageLocations) -> AsyncIterator[tuple[Journal, Store]]:
    """Opens both. Raises InvalidJournal or InvalidStore, which say what to do."""
    async with AsyncExitStack() as stack:
        if locations.journal == NOWHERE:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="triptych-")))
        elif locations.journal and locations.store:
            folder = Path()
        else:
            folder = data_folder()
        journal = locations.journal if locations.journal not in ("", NOWHERE) else str(folder / "journal.db")
        store = open_store(locations.store or str(folder / "pictures"))
        stack.push_async_callback(store.close)
        await store.check()
        opened = await stack.enter_async_context(open_journal(journal, secrets.token_hex(8)))
        await store.hold(is_shared=opened.database.is_shared)
        is_lasting = locations.journal != NOWHERE
        await check_pair(opened, store, adopts=locations.adopts_store, is_lasting=is_lasting)
        sweeping = asyncio.create_task(
            Retention(locations.keep, opened, store).sweep_forever(), name="retention"
        )
        stack.callback(sweeping.cancel)
        yield opened, store


def data_folder() -> Path:
    """The user's own, where XDG has it."""
    if base := os.environ.get("XDG_DATA_HOME"):
        return Path(base) / "triptych"
    home = os.path.expanduser("~")
    if home.startswith("~"):
        raise InvalidStore(
            "there is no home directory to keep runs in: set HOME, or name --journal (none: they end with the process) "
            "and --store"
        )
    return Path(home) / ".local" / "share" / "triptych"


def examples_folder(locations: StorageLocations) -> Path | None:
    """Beside a journal that is a file; else the user's own, where there is one."""
    if locations.journal not in ("", NOWHERE) and "://" not in locations.journal:
        return Path(locations.journal).parent / "examples"
    try:
        return data_folder() / "examples"
    except InvalidStore:
        return None


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """The options of `triptych serve gateway`; `targets` maps a stage's name to its workers."""

    targets: Mapping[str, tuple[Target, ...]]
    workers_file: WorkersFile | None
    host: str
    port: int
    http_port: int | None
    http_allowed_hosts: Collection[str]
    http_trusted_proxies: TrustedProxies
    http_public_url: str
    storage: StorageLocations
    admission: AdmissionLimits
    retry_policy: RetryPolicy
    authentication: Authentication
    certificate: CertificateFiles | None
    health_port: int | None
    stage_certificates: CertificateFiles | None
    abandon_grace_s: float
    grace_s: float
    exit_with_parent: bool
    metrics_port: int | None
    has_examples: bool = True
    webhooks: WebhookOptions | None = None
    # For the log: all of them as they were given.
    described: Mapping[str, object] = field(default_factory=dict)


async def run_gateway(options: GatewayOptions) -> None:
    """Serves until SIGTERM or Ctrl-C. Runs then have `grace_s` to finish; the rest continues at the next start."""
    workers = options.workers_file
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(
            stop_signal(grace_s=options.grace_s, with_parent=options.exit_with_parent, ends_process=True)
        )
        stop.starting = asyncio.current_task()
        pools = {
            stage.name: await stack.enter_async_context(
                Pool(
                    Discovery(
                        stage,
                        options.targets[stage.name],
                        certificates=options.stage_certificates,
                        more_targets=functools.partial(workers.targets, stage) if workers else None,
                    )
                )
            )
            for stage in STAGES
        }
        journal, store = await stack.enter_async_context(open_storage(options.storage))
        bounds = RunLimits(room=options.admission, abandon_grace_s=options.abandon_grace_s)
        runs = await stack.enter_async_context(
            RunManager(pools, options.retry_policy, bounds, journal, store).running()
        )

        async def report_storage(differences: Differences) -> None:
            await running.set_serving(not differences.missing, [STORAGE])

        audit = StorageAudit(journal.reader, store, report_storage)
        metrics = GatewayMetrics(pools, runs, audit)
        stack.enter_context(serving_metrics(metrics.registry, options.host, options.metrics_port))
        pipeline = Pipeline(pools, runs, options.webhooks.policy if options.webhooks else WebhookPolicy())
        if options.webhooks is not None:
            queue, policy = WebhookQueue(journal.database), options.webhooks.policy
            webhooks = WebhookSender(queue, policy, options.webhooks.signer, metrics.registry)
            runs.on_finished = webhooks.wake
            sending = asyncio.create_task(webhooks.run_forever(), name="webhooks")
            stack.callback(sending.cancel)
        service = PipelineService(pipeline)
        budget = RequestBudget()
        request_log = RequestLog(metrics.registry)
        web = None
        if options.http_port is not None:
            examples = None
            if options.has_examples and (folder := examples_folder(options.storage)):
                examples = ExampleGallery(pipeline, folder)
                stack.push_async_callback(examples.close)
            web = await stack.enter_async_context(
                serving_http(
                    RequestContext(
                        pipeline,
                        options.authentication,
                        budget=budget,
                        request_log=request_log,
                        examples=examples,
                        audit=audit,
                        public_url=options.http_public_url,
                    ),
                    host=options.host,
                    port=options.http_port,
                    grace_s=stop.left_s,
                    hosts=options.http_allowed_hosts,
                    proxies=options.http_trusted_proxies,
                    certificate=options.certificate,
                )
            )
        running = await stack.enter_async_context(
            serving(
                lambda server: add_PipelineServiceServicer_to_server(service, server),
                services=[SERVICE],
                authenticate=options.authentication.enter,
                budget=budget,
                request_log=request_log,
                certificate=options.certificate,
                health_port=options.health_port,
                host=options.host,
                port=options.port,
                grace_s=stop.left_s,
            )
        )
        # Before the server ends its calls, whichever way it comes to that: they must not take their runs along.
        stack.push_async_callback(runs.close)
        await running.set_serving(True)
        await running.set_serving(True, [STORAGE])

        async def report(problem: str) -> None:
            runs.storage_problem = problem
            await running.set_serving(not problem)

        health = StorageHealth(journal, store, report)
        await health.look()
        watching = asyncio.create_task(health.watch_forever(), name="storage")
        stack.callback(watching.cancel)
        auditing = asyncio.create_task(audit.run_forever(), name="audit")
        stack.callback(auditing.cancel)
        log.info(
            "serving on %s%s: version %s, journal %s, store %s, workers %s",
            running.address,
            f" and http://{web.address}" if web else "",
            __version__,
            without_passwords(str(journal.database.url.database)),
            without_passwords(str(store)),
            ", ".join(f"{stage} {len(targets)}" for stage, targets in options.targets.items()),
            extra={
                "event": "started",
                "version": __version__,
                "address": running.address,
                "http": web.address if web else "",
                "journal": without_passwords(str(journal.database.url)),
                "store": without_passwords(str(store)),
                "models": {
                    stage: ", ".join(sorted({one.model.name for one in pool.healthy}))
                    for stage, pool in pools.items()
                },
                "options": dict(options.described),
            },
        )
        announce("gateway", running.address, **({"http": web.address} if web else {}))
        stop.starting = None
        await stop.wait()
        watching.cancel()
        log.info("stopping; runs have %.0f s to finish", options.grace_s)
        await running.set_serving(False)
        await runs.close(stop.left_s())
        if web:
            web.stop()
