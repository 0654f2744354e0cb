"""What the gRPC services of all stages share: the loaded model, and streams of jobs.

A stage adds its RPCs (check the request, make jobs, wrap the events of `self.stream`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from google.protobuf import duration_pb2

from services.engine.engine import Engine
from services.engine.events import Accepted, EncodedPicture, Event, Failed, Finished, Preview, Progress
from services.engine.stepper import JobRequest, Stepper
from services.errors import NotReady
from services.serving.limits.call_gate import Context, host_of
from services.serving.metrics import StageMetrics
from services.serving.tracing import spans
from services.weights.model_folder import Manifest
from triptych import __version__
from triptych.v1.stage_pb2 import ImageData, ModelInfo, Stage, StageEvent

Job = TypeVar("Job")
Decoded = TypeVar("Decoded")

# A finished file of more is sent in chunks, ahead of its event.
MAX_INLINE_BYTES = 16 * 2**20
CHUNK_BYTES = 2 * 2**20

MAX_PROMPT_BYTES = 2_000
MAX_IMAGES = 64
# Of settings that every stage has.
COMMON_DEFAULTS = {"preview_every": 0.0}
COMMON_RANGES = {"preview_every": ModelInfo.Range(lowest=0, highest=1_000_000)}
MAX_DECODED_AT_ONCE = 2


@runtime_checkable  # for the type checks of the tests
class LoadedStage(Protocol):
    """What a stage's `load` returns: the network behind its stepper, and what to say of it."""

    @property
    def stepper(self) -> Stepper[Any, Any]: ...

    @property
    def info(self) -> ModelInfo: ...


Loaded = TypeVar("Loaded", bound=LoadedStage)


@dataclass(frozen=True)
class ServeOptions:
    """The options of every stage's process."""

    model: str
    host: str
    port: int
    slots: int
    max_queue: int
    threads: int | None
    device: str
    grace: float
    exit_with_parent: bool
    log_level: str
    log_format: str = "text"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    health_port: int | None = None
    metrics_port: int | None = None
    spot_notices: str | None = None


class StageService(Generic[Loaded, Job]):
    """The half of a servicer that every stage has: a model that is there after a while, and streams of its jobs."""

    def __init__(self) -> None:
        # Decoded pictures are many times as large as their files.
        self._decoding = asyncio.Semaphore(MAX_DECODED_AT_ONCE)
        self._ready: tuple[Loaded, Engine[Job]] | None = None
        self._observe: Callable[[Event], None] = lambda event: None

    def set_ready(self, loaded: Loaded, engine: Engine[Job], metrics: StageMetrics | None = None) -> None:
        self._ready = loaded, engine
        if metrics is not None:
            self._observe = metrics.observe
            metrics.watch(
                {
                    "triptych_waiting_images": ("Pictures in the queue.", lambda: engine.num_waiting),
                    "triptych_running_images": ("Pictures that are made now.", lambda: engine.num_running),
                    "triptych_slots": ("Pictures that can be made at once.", lambda: engine.num_slots),
                }
            )

    async def decode(self, read: Callable[..., Decoded], *arguments: Any) -> Decoded:
        """What `read` makes of a request, beside the event loop; the requests of some callers at a time."""
        async with self._decoding:
            return await asyncio.to_thread(read, *arguments)

    @property
    def loaded(self) -> Loaded:
        """Raises NotReady until the model is loaded and warm."""
        return self._require_ready()[0]

    @property
    def engine(self) -> Engine[Job]:
        return self._require_ready()[1]

    def _require_ready(self) -> tuple[Loaded, Engine[Job]]:
        if self._ready is None:
            raise NotReady(
                "the model is still being loaded and warmed up; health says SERVING when it is done"
            )
        return self._ready

    async def stream(
        self, tickets: Sequence[JobRequest[Job]], *, seeds: dict[int, int], caller: str, context: Context
    ) -> AsyncIterator[StageEvent]:
        """Runs the jobs of one call and gives its events; the caller's going away cancels them.

        `seeds` maps an index to the seed that its finished image is reported with.
        """
        warnings = [
            StageEvent(warning=StageEvent.Warning(index=ticket.index, reason=reason, message=message))
            for ticket in tickets
            for reason, message in ticket.warnings.items()
        ]
        began_ns = time.time_ns()
        timeout_s = context.time_remaining()
        async with self.engine.submit(
            tickets, caller=caller or host_of(context.peer()), timeout_s=timeout_s
        ) as events:
            async for event in events:
                self._observe(event)
                if isinstance(event, Finished):
                    self._record_spans(event, began_ns)
                for message in _to_messages(event, len(tickets), seeds):
                    yield message
                # After the first event, which accepts the request.
                while warnings:
                    yield warnings.pop(0)

    def _record_spans(self, event: Finished, began_ns: int) -> None:
        """Where the time of a finished picture went, below the span of its call."""
        if not spans.is_on():
            return
        info, timing, now_ns = self.loaded.info, event.timing, time.time_ns()
        attributes: dict[str, str | int | float] = {
            "gen_ai.request.model": info.name,
            "triptych.index": event.index,
        }
        admitted_ns = began_ns + int(timing.queue_s * 1e9)
        encoded_ns = now_ns - int(timing.encode_s * 1e9)
        spans.record_span("queue", began_ns, admitted_ns, {**attributes, "triptych.queue": "stage"})
        in_batch: dict[str, str | int | float] = {
            "triptych.compute_s": round(timing.compute_s, 6),
            "triptych.batch_wait_s": round(timing.batch_wait_s, 6),
        }
        spans.record_span("batch", admitted_ns, encoded_ns, {**attributes, **in_batch})
        spans.record_span("encode", encoded_ns, now_ns, attributes)


def model_info(manifest: Manifest, stage: Stage.ValueType, options: ServeOptions, **more: Any) -> ModelInfo:
    """A ModelInfo from the manifest and the options; `more` are its fields that only the stage knows.

    `limits`, `defaults` and `ranges`, when given, are completed by what is the same in every stage.
    """
    limits = more.pop("limits", ModelInfo.Limits())
    limits.MergeFrom(
        ModelInfo.Limits(
            max_images=MAX_IMAGES,
            max_prompt_bytes=MAX_PROMPT_BYTES,
            max_queue=options.max_queue,
            num_slots=options.slots,
        )
    )
    defaults = {**more.pop("defaults", {}), **COMMON_DEFAULTS}
    ranges = {**more.pop("ranges", {}), **COMMON_RANGES}
    return ModelInfo(
        name=manifest.name,
        digest=manifest.digest,
        stage=stage,
        version=__version__,
        vocabulary={kind: ModelInfo.WordList(words=words) for kind, words in manifest.vocabulary.items()},
        example_prompts=manifest.example_prompts,
        limits=limits,
        defaults=defaults,
        ranges=ranges,
        **more,
    )


def _to_messages(event: Event, num_images: int, seeds: dict[int, int]) -> Iterator[StageEvent]:
    match event:
        case Accepted(position):
            yield StageEvent(accepted=StageEvent.Accepted(queue_position=position, num_images=num_images))
        case Progress(index, step, num_steps):
            yield StageEvent(progress=StageEvent.Progress(index=index, step=step, num_steps=num_steps))
        case Preview(index, step, num_steps, picture):
            preview = StageEvent.Preview(index=index, step=step, num_steps=num_steps, image=_image(picture))
            yield StageEvent(preview=preview)
        case Finished(index, picture, timing):
            data = picture.png
            if picture.file is not None or len(data) > MAX_INLINE_BYTES:
                for part in picture.parts(CHUNK_BYTES):
                    yield StageEvent(chunk=StageEvent.ImageChunk(index=index, data=part))
                data = b""
            image = StageEvent.FinishedImage(
                index=index, image=_image(picture, data), seed=seeds.get(index, 0)
            )
            spent = StageEvent.Timing(
                index=index,
                queue=_duration(timing.queue_s),
                batch_wait=_duration(timing.batch_wait_s),
                compute=_duration(timing.compute_s),
                encode=_duration(timing.encode_s),
            )
            yield StageEvent(image=image)
            yield StageEvent(timing=spent)
        case Failed(index, error):
            failure = StageEvent.ImageFailure(index=index, reason=error.reason, message=str(error))
            yield StageEvent(failure=failure)


def _image(picture: EncodedPicture, data: bytes | None = None) -> ImageData:
    data = picture.png if data is None else data
    return ImageData(mime_type="image/png", data=data, width=picture.width, height=picture.height)


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
