"""One call for one image to one worker: its events are validated, and its silence has an end.

Makes one attempt and reports the outcome to the pool. Retries are in retry.py.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import partial

import grpc

from gateway.stages import Job, Stage
from gateway.workers.errors import StageError, from_failure, from_rpc
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.worker import Worker
from services.images.codec import read_png_size
from services.queues import QueueRate
from services.serving.request_log import current_traceparent
from services.serving.tracing import spans
from triptych.v1.stage_pb2 import StageEvent

log = logging.getLogger(__name__)


async def stream_image(
    pool: Pool, worker: Worker, job: Job, retry_policy: RetryPolicy
) -> AsyncGenerator[StageEvent]:
    """The events of one image from one worker. Raises StageError, unless the image arrived before the failure."""
    where = f"{pool.stage.worker_name} {worker.address}"
    span = start_call_span(f"{pool.stage.service}/{pool.stage.method}", worker.address)
    traceparent = span.traceparent or current_traceparent()
    stream = pool.stage.start(worker.channel, job, retry_policy.timeout_s(), traceparent)
    monitor = CallMonitor(retry_policy, worker.queue_rate)
    has_picture = False
    # Until it has ended otherwise, the caller does not want it any more.
    code, reason = "CANCELLED", ""
    # What another attempt has left of its file.
    job.spool.close()
    worker.on_stall.add(monitor.abort)
    try:
        while True:
            async with asyncio.timeout(monitor.limit_s) as monitor.limit:
                event = await stream.read()
            monitor.limit = None
            if event is None:
                break
            # A large file is checked as a whole, beside the event loop.
            is_large = event.HasField("image") and job.spool.path is not None
            find = partial(_validate_event, event, job, pool.stage, has_picture=has_picture)
            if problem := await asyncio.to_thread(find) if is_large else find():
                raise _broken(f"{where} was asked for image {job.index} and answered with {problem}")
            pool.touch(worker)
            monitor.on_event(event)
            if event.HasField("failure"):
                raise from_failure(event.failure, where)
            if event.HasField("chunk"):
                await asyncio.to_thread(job.spool.add, event.chunk.data)
                continue
            if event.HasField("image"):
                has_picture = True
                pool.report_succeeded(worker)
            yield event
        if not has_picture:
            raise _broken(f"{where} ended without the picture")
    except TimeoutError:
        error = monitor.stalled(where)
        code, reason = "DEADLINE_EXCEEDED", error.reason
        if not monitor.is_aborted:
            pool.report_stalled(worker, str(error), retry_policy.stall_timeout_s)
    except (grpc.aio.AioRpcError, StageError) as failure:
        error = failure if isinstance(failure, StageError) else from_rpc(failure, where)
        pool.report_failed(worker, error)
        code, reason = error.status.name, "" if has_picture else error.reason
    else:
        code = "OK"
        return
    finally:
        worker.on_stall.discard(monitor.abort)
        stream.cancel()
        end_call_span(span, code, reason)
    if not has_picture:
        raise monitor.mark_blame(error)
    log.info("%s was lost after the image: %s", where, error)


def start_call_span(method: str, address: str) -> spans.Span:
    """The span of a call to a stage. It is never the current one: what is awaited meanwhile is the gateway's own work."""
    if not spans.is_on():
        return spans.NO_SPAN
    host, _, port = address.rpartition(":")
    attributes: dict[str, str | int] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "server.address": host.strip("[]"),
    }
    if port.isdecimal():
        attributes["server.port"] = int(port)
    return spans.start_span(method, attributes, kind="client")


def end_call_span(span: spans.Span, code: str, reason: str) -> None:
    """`reason`: why it failed; "" for a call that gave what was wanted, or is not wanted any more."""
    if span:
        span.set({"rpc.response.status_code": code})
        if reason:
            span.fail(reason)
        span.end()


class CallMonitor:
    """Where a picture is at its worker: on its way, in the queue, or being made; and how long it may be silent there."""

    def __init__(self, retry_policy: RetryPolicy, queue_rate: QueueRate) -> None:
        self._retry_policy = retry_policy
        # Of the queue, which this picture measures as it moves with it.
        self._queue_rate = queue_rate
        self._position, self._moved_at = 0, 0.0
        self.is_waiting = False
        self.is_being_made = False
        # Whether it left the queue because the worker has stalled with others.
        self.is_aborted = False
        # Of the read that is under way.
        self.limit: asyncio.Timeout | None = None

    @property
    def limit_s(self) -> float:
        if self.is_aborted:
            return 0.0
        # A queue may well stand still for longer than a picture that is being made.
        return self._retry_policy.queue_timeout_s if self.is_waiting else self._retry_policy.stall_timeout_s

    def on_event(self, event: StageEvent) -> None:
        position = event.accepted.queue_position if event.HasField("accepted") else 0
        now = asyncio.get_running_loop().time()
        if self._position:
            self._queue_rate.moved(self._position - position, now - self._moved_at)
        self._position, self._moved_at = position, now
        self.is_waiting, self.is_being_made = position > 0, position == 0

    def abort(self) -> None:
        """Gives up the place in the queue, if it has one."""
        if self.is_waiting:
            self.is_aborted = True
            if self.limit is not None:
                self.limit.reschedule(asyncio.get_running_loop().time())

    def mark_blame(self, error: StageError) -> StageError:
        """Whether the picture may be the cause."""
        error.is_in_queue = not self.is_being_made
        return error

    def stalled(self, where: str) -> StageError:
        """What it means that the limit has passed."""
        if self.is_aborted:
            text = f"{where} has stalled, and the picture left its queue"
        elif self.is_waiting:
            text = f"the queue of {where} has not moved for {self.limit_s:g} s"
        else:
            text = f"{where} has been silent for {self.limit_s:g} s"
        return self.mark_blame(StageError(text, reason="WORKER_STALLED", retry_after_s=5.0))


def _validate_event(event: StageEvent, job: Job, stage: Stage, *, has_picture: bool) -> str:
    """What of the event cannot belong to the job; empty if nothing."""
    match event.WhichOneof("kind"):
        case "accepted":
            return ""
        case None:
            return "an empty event"
        case name:
            detail = getattr(event, name)
    if detail.index != job.index:
        return f"a {name} of image {detail.index}"
    if name == "chunk" and has_picture:
        return "more of a picture that was whole"
    if name != "image":
        return ""
    if has_picture:
        return "a second picture"
    has_data = bool(detail.image.data) or job.spool.path is not None
    if not (has_data and detail.image.width > 0 and detail.image.height > 0):
        return "a picture without data or size"
    if stage.draws and detail.seed != job.seed:
        return f"a picture of seed {detail.seed} where {job.seed} was asked for"
    # The next stage and every caller trust its header; nothing else on the way looks inside.
    if detail.image.mime_type not in ("", "image/png"):
        return f"a picture of type {detail.image.mime_type[:40]!r}"
    try:
        if job.spool.path is None:
            size = read_png_size(detail.image.data)
        else:
            job.spool.add(detail.image.data)
            size = job.spool.read_size()
    except ValueError as error:
        return str(error)
    if size != (detail.image.width, detail.image.height):
        claimed = f"{detail.image.width} x {detail.image.height}"
        return f"a picture of {size[0]} x {size[1]} pixels that is said to have {claimed}"
    return ""


def _broken(message: str) -> StageError:
    log.error("%s", message)
    return StageError(message, reason="WORKER_BROKEN", retry_after_s=1.0)
