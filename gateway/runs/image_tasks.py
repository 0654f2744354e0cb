"""The pictures of one run, each made by a call of its own, unless the record has it already, and published as it is made.

It knows what a picture is made from, and nothing of where it goes next.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from gateway.events.run_state import CANCELLED
from gateway.planning.plan import MAX_SEED, Plan, StageSettings
from gateway.runs.admission import Admission
from gateway.runs.memory_budget import WeightedSemaphore
from gateway.runs.recorder import RunRecorder
from gateway.stages import UPSCALE, Job, Stage
from gateway.workers.errors import StageError, as_recorded
from gateway.workers.pool import Pool
from gateway.workers.retry import (
    AttemptEvent,
    AttemptFailed,
    AttemptStarted,
    NoWorkerYet,
    generate_with_retries,
)
from gateway.workers.retry_policy import RetryPolicy
from gateway.workers.worker import Worker
from services.errors import InvalidRequest, TriptychError
from services.serving.tracing.log_fields import logging_with
from services.serving.tracing.spans import Span, span
from triptych.v1.pipeline_pb2 import Image
from triptych.v1.stage_pb2 import ImageData, StageEvent

# What a picture may take in memory, as far as that can be known before it is made.
BYTES_PER_PIXEL = 3
SKETCH_PIXELS = 256 * 256
ENLARGED = 4 * 4
# Of a file in one message; a larger one goes to the disk as it comes.
MAX_MESSAGE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class RunContext:
    """What all runs of one gateway share."""

    # By the stage's name.
    pools: Mapping[str, Pool]
    retry_policy: RetryPolicy
    # Decides which runs begin.
    admission: Admission
    # In bytes. An image that waits for its turn here is in the store alone.
    memory: WeightedSemaphore


class ImageTasks:
    """`failures` are what was given up, first the earliest, since the run was accepted or taken up again."""

    def __init__(
        self, plan: Plan, record: RunRecorder, context: RunContext, *, caller: str, retry_policy: RetryPolicy
    ) -> None:
        self.failures: list[TriptychError] = [as_recorded(error) for error in record.run.failures]
        self._plan = plan
        self._record = record
        self._run = record.run
        self._context = context
        self._retry_policy = retry_policy
        self._caller = caller
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def make(
        self,
        work: StageSettings,
        index: int,
        parent: str,
        deliver: Callable[[Image], None],
        give_up: Callable[[], None],
    ) -> None:
        """Makes one picture, unless it is there, and calls exactly one of `deliver` and `give_up`."""
        name = self._record.image_name(work.stage, index)
        if image := self._run.images.get(name):
            deliver(image)
            return
        with (
            logging_with(image=name.rpartition("/")[2], stage=work.stage.name),
            span(f"generate_content {work.model.name}", self._attributes(work, name, index)) as made,
        ):
            await self._make(work, name, index, parent, deliver, give_up, made)

    async def _make(
        self,
        work: StageSettings,
        name: str,
        index: int,
        parent: str,
        deliver: Callable[[Image], None],
        give_up: Callable[[], None],
        made: Span,
    ) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks[name] = task
        is_delivered = False

        async def keep(job: Job, picture: ImageData) -> None:
            nonlocal is_delivered
            image = await self._record.image_ready(work.stage, job, picture, work.model, parent)
            job.spool.close()
            is_delivered = True
            deliver(image)

        keeping: asyncio.Task[None] | None = None
        job: Job | None = None
        try:
            if name in self._run.given_up:
                return
            async with self._context.memory.holding(self._bytes_of(work, parent)):
                job = await self._job(work, index, parent)
                stopwatch = Stopwatch(asyncio.get_running_loop().time)
                timing: StageEvent.Timing | None = None
                picture = generate_with_retries(
                    self._context.pools[work.stage.name],
                    job,
                    work.model.digest,
                    self._retry_policy,
                    num_attempts=self._run.attempts.get(name, 0),
                    on_position=partial(self._record.queued, work.stage, index),
                )
                async with aclosing(picture) as happenings:
                    async for happening in happenings:
                        # Read to the end while the picture is written: what comes after it is published with it.
                        if isinstance(happening, StageEvent) and happening.HasField("image"):
                            stopwatch.stop()
                            keeping = asyncio.create_task(keep(job, happening.image.image))
                            # Where nobody comes to wait for it, what it failed of is nobody's.
                            keeping.add_done_callback(lambda done: done.cancelled() or done.exception())
                        elif isinstance(happening, StageEvent) and happening.HasField("timing"):
                            timing = happening.timing
                        else:
                            self._tell(work, job, parent, happening, stopwatch)
                if keeping is not None:
                    await keeping
                if timing is not None:
                    self._record.timing(work.stage, timing, stopwatch.waited_s)
        except TriptychError as error:
            made.fail(error.reason)
            self.fail(_as_the_callers(error, work.stage), name)
        finally:
            if keeping is not None:
                keeping.cancel()
            if job is not None:
                job.spool.close()
            del self._tasks[name]
            self._record.queued(work.stage, index, 0)
            if not is_delivered:
                give_up()

    def _attributes(self, work: StageSettings, name: str, index: int) -> dict[str, str | int]:
        """Of its span: OpenTelemetry's names for generative AI, and ours."""
        return {
            "gen_ai.operation.name": "generate_content",
            "gen_ai.provider.name": "triptych",
            "gen_ai.output.type": "image",
            "gen_ai.request.model": work.model.name,
            "gen_ai.request.seed": self._seed(index),
            "triptych.image": name,
            "triptych.stage": work.stage.name,
        }

    def _seed(self, index: int) -> int:
        return (self._plan.spec.seed + index) & MAX_SEED

    def _tell(
        self, work: StageSettings, job: Job, parent: str, happening: AttemptEvent, stopwatch: "Stopwatch"
    ) -> None:
        """Records what happened to a picture on its way."""
        stage, record = work.stage, self._record
        if isinstance(happening, AttemptFailed | NoWorkerYet):
            then = (
                f"trying another {stage.worker_name}"
                if isinstance(happening, AttemptFailed)
                else "waiting for one"
            )
            name = record.image_name(stage, job.index)
            record.warn(happening.error.reason, f"{happening.error}; {then}", name)
            return
        if isinstance(happening, AttemptStarted):
            stopwatch.start()
            stopwatch.worker = happening.worker
            if not happening.same_worker:
                record.stage_started(stage, happening.worker.address, happening.attempt, job.index, parent)
            return
        match happening.WhichOneof("kind"):
            case "accepted":
                position = happening.accepted.queue_position
                wait_s = stopwatch.worker.queue_rate.wait_s(position) if stopwatch.worker else None
                record.queued(stage, job.index, position, wait_s)
            case "progress":
                record.progress(stage, happening.progress)
            case "preview":
                record.preview(stage, happening.preview)
            case "warning":
                record.notice(happening.warning.reason, happening.warning.message)

    def fail(self, error: TriptychError, image: str = "") -> None:
        """Fails an image, or a task without one, and publishes the error."""
        self.failures.append(error)
        self._record.warn(error.reason, str(error), image, given_up=True)

    def cancel(self, names: Collection[str]) -> None:
        """Stops the work on these images, begun or not; of finished ones nothing changes."""
        for name in names:
            if name in self._run.given_up or name in self._run.images:
                continue
            self._record.warn(CANCELLED, "cancelled by the caller", name, given_up=True)
            if task := self._tasks.get(name):
                task.cancel()

    def _bytes_of(self, work: StageSettings, parent: str) -> int:
        """What a picture and its parent may take in memory: no file is larger than its pixels."""
        image = self._record.find_image(parent) or self._record.find_init_image(parent)
        if image is None:
            return BYTES_PER_PIXEL * SKETCH_PIXELS
        num_bytes = BYTES_PER_PIXEL * image.width * image.height
        # What is larger comes in chunks, and goes to the disk.
        return num_bytes + min(num_bytes * (ENLARGED if work.stage is UPSCALE else 1), MAX_MESSAGE_BYTES)

    async def _job(self, work: StageSettings, index: int, parent: str) -> Job:
        spec = self._plan.spec
        return Job(
            index=index,
            seed=self._seed(index),
            prompt=self._plan.prompt,
            settings=work.settings,
            run_seed=spec.seed,
            caller=self._caller,
            name=self._record.image_name(work.stage, index),
            image=await self._record.read(parent) if parent else None,
            mask=await self._record.read_mask(work.mask) if work.mask else None,
            image_prompts=await self._record.read_image_prompts(work.image_prompts),
            text_difference=work.text_difference,
        )


class Stopwatch:
    """How long the gateway waited for a picture, from the attempt that gave it, and for whom."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_at = clock()
        self.waited_s = 0.0
        self.worker: Worker | None = None

    def start(self) -> None:
        self._started_at = self._clock()

    def stop(self) -> None:
        self.waited_s = self._clock() - self._started_at


def _as_the_callers(error: TriptychError, stage: Stage) -> TriptychError:
    """A stage names fields of its own request; the caller gets those of the spec."""
    if isinstance(error, StageError):
        for field, description in error.violations.items():
            if field.startswith("settings"):
                return InvalidRequest(f"spec.{stage.name}.{field}", description)
            if field == "prompt":
                return InvalidRequest("spec.prompt", description)
            if field.startswith(("mask", "image_prompts", "text_difference")):
                return InvalidRequest(f"spec.{stage.name}.{field}", description)
    return error
