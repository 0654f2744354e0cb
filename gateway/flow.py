"""How the pictures of one run move: from stage to stage as soon as the mode allows, a bounded number at a time.

Every picture is a call of its own to a stage, so it can be cancelled, or made elsewhere, alone; the stage batches it
with all others. Picture i of a stage has index i and seed `seed + i`: the children of the parent at position p,
which is its index where all go on and its rank where the best do, are p * count ... p * count + count - 1.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from gateway.attempts import Patience, Retrying, StageError, Started, make_picture
from gateway.plan import MAX_SEED, Plan, StagePlan
from gateway.pool import Pool
from gateway.ranking import score
from gateway.record import Record
from gateway.stages import REFINE, Job
from services.errors import InvalidRequest, TriptychError
from triptych.v1.pipeline_pb2 import Image, RunState
from triptych.v1.stage_pb2 import ImageData, StageEvent

log = logging.getLogger(__name__)

# Pictures of one stage that are asked for, or wait for the next stage to begin with them. A fast stage is asked for no
# more before the slow one after it has caught up.
CREDITS = 16


@dataclass(frozen=True)
class Parent:
    """What children are made from; `taken` is called once the work on all of them has begun."""

    position: int
    name: str = ""
    image: ImageData | None = None
    taken: Callable[[], None] = lambda: None


# None ends it. It needs no bound of its own: whoever puts a parent holds a credit until it is taken.
Lane = asyncio.Queue[Parent | None]


class Flow:
    """Carries out a plan. One use: `await run()`, then ask for the `outcome`."""

    def __init__(
        self, plan: Plan, record: Record, pools: Mapping[str, Pool], patience: Patience, caller: str
    ) -> None:
        self._plan = plan
        self._record = record
        self._pools = pools
        self._patience = patience
        self._caller = caller
        self._making: dict[str, asyncio.Task[None]] = {}
        self._unwanted: set[str] = set()
        self._failures: list[TriptychError] = []
        self._num_results = 0

    async def run(self) -> None:
        """Ends when nothing is left to do; cancelling it cancels the work of all stages at once."""
        inbox: Lane = asyncio.Queue()
        for parent in self._first_parents():
            inbox.put_nowait(parent)
        inbox.put_nowait(None)
        self._record.begin()
        async with asyncio.TaskGroup() as stages:
            for stage in self._plan.stages:
                outbox: Lane = asyncio.Queue()
                stages.create_task(self._run_stage(stage, inbox, outbox))
                inbox = outbox

    @property
    def outcome(self) -> tuple[RunState.ValueType, TriptychError | None]:
        """How the run ended: it has failed when the last stage made nothing, and partly succeeded when some failed."""
        error = self._failures[0] if self._failures else None
        if self._num_results:
            done = RunState.RUN_STATE_PARTIALLY_SUCCEEDED if error else RunState.RUN_STATE_SUCCEEDED
            return done, error
        return (RunState.RUN_STATE_FAILED if error else RunState.RUN_STATE_CANCELLED), error

    def cancel_images(self, names: Collection[str]) -> None:
        """Stops the work on these images, begun or not; of finished ones nothing changes."""
        for name in names:
            if name in self._unwanted or self._record.find_image(name):
                continue
            self._unwanted.add(name)
            if task := self._making.get(name):
                task.cancel()

    def _first_parents(self) -> list[Parent]:
        if not self._plan.init_images:
            return [Parent(0)]
        return [
            Parent(place, f"{self._record.name}/images/init-{place}", image)
            for place, image in enumerate(self._plan.init_images)
        ]

    async def _run_stage(self, stage: StagePlan, inbox: Lane, outbox: Lane) -> None:
        credits = asyncio.Semaphore(CREDITS)
        # Where the best go on, all wait here for their scores; those credits are given back, or nobody could be last.
        waiting: list[Image] = []
        is_last = stage is self._plan.stages[-1]

        def deliver(image: Image) -> None:
            self._num_results += is_last
            if stage.top_k:
                waiting.append(image)
            if stage.top_k or is_last:
                credits.release()
            else:
                outbox.put_nowait(Parent(image.index, image.name, self._file_of(image), credits.release))

        async with asyncio.TaskGroup() as pictures:
            while (parent := await inbox.get()) is not None:
                for place in range(stage.count):
                    await credits.acquire()
                    job = self._job(stage, parent.position * stage.count + place, parent)
                    pictures.create_task(self._make(stage, job, parent.name, deliver, credits.release))
                parent.taken()
        for rank, image in enumerate(await self._select(stage, waiting)):
            outbox.put_nowait(Parent(rank, image.name, self._file_of(image)))
        outbox.put_nowait(None)

    async def _make(
        self,
        stage: StagePlan,
        job: Job,
        parent: str,
        deliver: Callable[[Image], None],
        give_up: Callable[[], None],
    ) -> None:
        """Makes one picture and calls exactly one of `deliver` and `give_up`."""
        name = self._record.image_name(stage.kind, job.index)
        task = asyncio.current_task()
        if task is not None:
            self._making[name] = task
        is_delivered = False
        try:
            if name in self._unwanted:
                self._tell_cancelled(name)
                return
            pool, digest = self._pools[stage.kind.name], stage.model.digest
            watch = Watch(asyncio.get_running_loop().time)
            async with aclosing(make_picture(pool, job, digest, self._patience)) as happenings:
                async for happening in happenings:
                    if image := self._tell(stage, job, parent, happening, watch):
                        is_delivered = True
                        deliver(image)
        except TriptychError as error:
            self._fail(_as_the_callers(error, stage), name)
        except asyncio.CancelledError:
            if name in self._unwanted and not is_delivered:
                self._tell_cancelled(name)
            raise
        finally:
            del self._making[name]
            self._record.queued(stage.kind, job.index, 0)
            if not is_delivered:
                give_up()

    def _tell(
        self,
        stage: StagePlan,
        job: Job,
        parent: str,
        happening: Started | Retrying | StageEvent,
        watch: "Watch",
    ) -> Image | None:
        """Records what happened to a picture; returns it when that is that it is finished."""
        kind, record = stage.kind, self._record
        if isinstance(happening, Retrying):
            record.warn(
                happening.error.reason,
                f"{happening.error}; trying another {kind.worker}",
                record.image_name(kind, job.index),
            )
            return None
        if isinstance(happening, Started):
            watch.start()
            record.stage_started(kind, happening.worker.address, happening.attempt, job.index, parent)
            return None
        match happening.WhichOneof("kind"):
            case "accepted":
                record.queued(kind, job.index, happening.accepted.queue_position)
            case "progress":
                record.progress(kind, happening.progress)
            case "preview":
                record.preview(kind, happening.preview)
            case "timing":
                record.timing(kind, happening.timing, watch.waited_s)
            case "image":
                watch.stop()
                return record.image_ready(kind, job, happening.image.image, stage.model, parent)
        return None

    async def _select(self, stage: StagePlan, images: list[Image]) -> list[Image]:
        """The best of a stage's pictures, best first; none where all have gone on already."""
        ranker = self._plan.ranker
        if not stage.top_k or not images or ranker is None:
            return []
        files = [self._file_of(image) for image in images]
        prompt = self._plan.spec.prompt
        try:
            scores = await score(self._pools[REFINE.name], prompt, files, ranker.digest, self._patience)
        except TriptychError as error:
            self._fail(error)
            return []
        # Equal scores keep the order of the indexes, so that the same run chooses the same pictures.
        ranked = sorted(zip(images, scores, strict=True), key=lambda pair: (-pair[1], pair[0].index))
        selected = [image for image, _ in ranked[: stage.top_k]]
        self._record.ranked(stage.kind, ranked, selected)
        return selected

    def _fail(self, error: TriptychError, image: str = "") -> None:
        self._failures.append(error)
        self._record.warn(error.reason, str(error), image)

    def _tell_cancelled(self, name: str) -> None:
        self._record.warn("CANCELLED", "cancelled by the caller", name)

    def _job(self, stage: StagePlan, index: int, parent: Parent) -> Job:
        spec = self._plan.spec
        return Job(
            index=index,
            seed=(spec.seed + index) & MAX_SEED,
            prompt=spec.prompt,
            settings=stage.settings,
            run_seed=spec.seed,
            caller=self._caller,
            image=parent.image,
        )

    def _file_of(self, image: Image) -> ImageData:
        data = self._record.files[image.name]
        return ImageData(mime_type=image.mime_type, data=data, width=image.width, height=image.height)


class Watch:
    """How long the gateway waited for a picture, from the attempt that gave it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_at = clock()
        self.waited_s = 0.0

    def start(self) -> None:
        self._started_at = self._clock()

    def stop(self) -> None:
        self.waited_s = self._clock() - self._started_at


def _as_the_callers(error: TriptychError, stage: StagePlan) -> TriptychError:
    """A stage names fields of its own request; the caller is told those of the spec."""
    if isinstance(error, StageError):
        for field, description in error.violations.items():
            if field.startswith("settings"):
                return InvalidRequest(f"spec.{stage.kind.name}.{field}", description)
            if field == "prompt":
                return InvalidRequest("spec.prompt", description)
    return error
