"""The flow of one run: sends its images from stage to stage, with a bounded number in flight.

Every picture is a call of its own to a stage, so it can be cancelled, or made elsewhere, alone; the stage batches it
with all others. Picture i of a stage has index i and seed `seed + i`: the children of the parent at position p,
which is its index where all go on and its rank where the best do, are p * count ... p * count + count - 1; those of
a selection have the indexes that were published when it was made. What the record has already is not made again.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.planning.plan import Plan, PlannedStage
from gateway.runs.image_tasks import ImageTasks, RunContext
from gateway.runs.recorder import RunRecorder
from gateway.stages import REFINE, Stage
from gateway.workers.clip_scores import score
from gateway.workers.retry_policy import RetryPolicy
from services.errors import TriptychError
from triptych.v1.pipeline_pb2 import Event, Image, RunState

# Pictures of one stage that are asked for, or wait for the next stage to begin with them. A fast stage is asked for no
# more before the slow one after it has caught up.
CREDITS = 16
# How long a selection by hand waits for scores.
SCORES_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Parent:
    """What children are made from, "" for nothing; `taken` is called once the work on all of them has begun."""

    position: int
    name: str = ""
    taken: Callable[[], None] = lambda: None


# None ends it. It needs no bound of its own: the task that puts a parent holds a credit until it is taken.
ParentQueue = asyncio.Queue[Parent | None]


class Flow:
    """Carries out a plan and the selections of a run, from wherever its record stands."""

    def __init__(
        self, plan: Plan, record: RunRecorder, context: RunContext, *, caller: str, retry_policy: RetryPolicy
    ) -> None:
        self._plan = plan
        self._record = record
        self._run = record.run
        self._pools = context.pools
        self._retry_policy = retry_policy
        self._image_tasks = ImageTasks(plan, record, context, caller=caller, retry_policy=retry_policy)
        self._work = asyncio.TaskGroup()
        # Of the work group's tasks those that are not done; with none left no other can join them.
        self._num_working = 0
        self._num_taken = self._run.num_done_selections
        # Of all selections together: each may ask for as many pictures as a stage makes.
        self._selection_credits = asyncio.Semaphore(CREDITS)

    async def run(self) -> None:
        """Ends when nothing is left to do; cancelling it cancels the work of all stages at once."""
        self._record.begin()
        if not self._run.is_plan_done:
            async with self._work:
                self._start(self._run_plan())
                self._take_selections()
        while self.has_more:
            self._work = asyncio.TaskGroup()
            async with self._work:
                self._take_selections()

    def selected(self) -> None:
        """The record has a new selection: begins with it, where this flow has not ended."""
        if self._num_working:
            self._take_selections()

    @property
    def has_more(self) -> bool:
        """Whether the record has a selection that came too late for this flow."""
        return self._num_taken < len(self._run.selections)

    @property
    def outcome(self) -> tuple[RunState.ValueType, TriptychError | None]:
        """What the run came to: it has failed when it made nothing of its last stage, and partly succeeded when some
        failed. A manual run that has nothing of its last stage waits for a choice, as long as there is one."""
        error = next(iter(self._image_tasks.failures), None)
        if self._has_results():
            done = RunState.RUN_STATE_PARTIALLY_SUCCEEDED if error else RunState.RUN_STATE_SUCCEEDED
            return done, error
        if self._plan.is_manual and self.candidates:
            return RunState.RUN_STATE_AWAITING_SELECTION, None
        return (RunState.RUN_STATE_FAILED if error else RunState.RUN_STATE_CANCELLED), error

    @property
    def candidates(self) -> list[Image]:
        """What a manual run has to choose from: the pictures of the furthest stage that has any and is not its last."""
        for planned in reversed(self._plan.stages[:-1]):
            images = [image for image in self._run.images.values() if image.stage == planned.stage.number]
            if images:
                return sorted(images, key=lambda image: image.index)
        return []

    @property
    def next_stage(self) -> Stage:
        """The stage that the candidates are for."""
        number = self.candidates[0].stage
        return next(planned.stage for planned in self._plan.stages if planned.stage.number > number)

    def cancel_images(self, names: Collection[str]) -> None:
        """Stops the work on these images, begun or not; of finished ones nothing changes."""
        self._image_tasks.cancel(names)

    def _has_results(self) -> bool:
        """Whether there is what the run is for: a picture of its last stage, or one that was chosen for beyond it."""
        last = self._plan.stages[-1].stage.number
        return any(
            image.stage >= last or (not self._plan.is_manual and self._run.is_selected(image.name))
            for image in self._run.images.values()
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        def count_down(_: asyncio.Task[None]) -> None:
            self._num_working -= 1

        self._num_working += 1
        self._work.create_task(work).add_done_callback(count_down)

    def _take_selections(self) -> None:
        for selected in self._run.selections[self._num_taken :]:
            self._num_taken += 1
            for choice in selected.choices:
                self._start(self._run_choice(choice))

    async def _run_choice(self, choice: Event.Selected.Choice) -> None:
        """Makes the pictures of one image that was taken to a stage by hand."""
        work = self._plan.work_of(choice)
        release = self._selection_credits.release
        async with asyncio.TaskGroup() as pictures:
            for index in choice.indexes:
                await self._selection_credits.acquire()
                made = self._image_tasks.make(
                    work, index, choice.selection.image, lambda _: release(), release
                )
                pictures.create_task(made)
        await self._score(
            work.stage, [self._record.image_name(work.stage, index) for index in choice.indexes]
        )

    async def _run_plan(self) -> None:
        inbox: ParentQueue = asyncio.Queue()
        for parent in self._first_parents():
            inbox.put_nowait(parent)
        inbox.put_nowait(None)
        # By hand nothing goes on from the first stage but what is selected.
        to_run = self._plan.stages[:1] if self._plan.is_manual else self._plan.stages
        async with asyncio.TaskGroup() as stages:
            for planned in to_run:
                outbox: ParentQueue = asyncio.Queue()
                stages.create_task(self._run_stage(planned, inbox, outbox, is_last=planned is to_run[-1]))
                inbox = outbox

    def _first_parents(self) -> list[Parent]:
        names = self._record.init_names
        return [Parent(index, name) for index, name in enumerate(names)] or [Parent(0)]

    async def _run_stage(
        self, planned: PlannedStage, inbox: ParentQueue, outbox: ParentQueue, *, is_last: bool
    ) -> None:
        credits = asyncio.Semaphore(CREDITS)
        # Where the best go on, all wait here for their scores; those credits are given back, or nobody could be last.
        waiting: list[Image] = []
        made_here: list[Image] = []

        def deliver(image: Image) -> None:
            made_here.append(image)
            if planned.top_k:
                waiting.append(image)
            if planned.top_k or is_last:
                credits.release()
            else:
                outbox.put_nowait(Parent(image.index, image.name, credits.release))

        async with asyncio.TaskGroup() as pictures:
            while (parent := await inbox.get()) is not None:
                for child in range(planned.count):
                    await credits.acquire()
                    index = parent.position * planned.count + child
                    made = self._image_tasks.make(planned.work, index, parent.name, deliver, credits.release)
                    pictures.create_task(made)
                parent.taken()
        await self._score(planned.stage, [image.name for image in made_here])
        for rank, name in enumerate(await self._rank(planned, waiting)):
            outbox.put_nowait(Parent(rank, name))
        outbox.put_nowait(None)

    async def _rank(self, planned: PlannedStage, images: list[Image]) -> list[str]:
        """Names of the best of a stage's pictures, best first; none where all have gone on already."""
        ranker = self._plan.ranker
        if not planned.top_k or not images or ranker is None:
            return []
        if planned.stage.number in self._run.ranked:
            return self._run.ranked[planned.stage.number]
        names = [image.name for image in images]
        prompt, read = self._plan.prompt, self._record.read
        try:
            scores = await score(
                self._pools[REFINE.name], prompt, names, read, ranker.digest, self._retry_policy
            )
        except TriptychError as error:
            self._image_tasks.fail(error)
            return []
        # Equal scores keep the order of the indexes, so that the same run chooses the same pictures.
        ranked = sorted(zip(images, scores, strict=True), key=lambda pair: (-pair[1], pair[0].index))
        selected = [image for image, _ in ranked[: planned.top_k]]
        self._record.ranked(planned.stage, ranked, selected)
        return [image.name for image in selected]

    async def _score(self, stage: Stage, names: Sequence[str]) -> None:
        """Publishes CLIP scores for a selection by hand. Errors are ignored."""
        ranker = self._plan.model_of(REFINE)
        images = [image for name in names if (image := self._run.images.get(name))]
        prompt, read = self._plan.prompt, self._record.read
        if not self._plan.is_manual or not prompt or ranker is None or not stage.draws or len(images) < 2:
            return
        pool = self._pools[REFINE.name]
        is_served = any(worker.model.digest == ranker.digest for worker in pool.healthy)
        if not is_served or all(image.HasField("clip_score") for image in images):
            return
        names = [image.name for image in images]
        # Nobody wants to wait for it.
        retry_policy = replace(
            self._retry_policy, stall_timeout_s=SCORES_TIMEOUT_S, worker_timeout_s=0.0, max_workers=1
        )
        try:
            scores = await score(pool, prompt, names, read, ranker.digest, retry_policy)
        except TriptychError as error:
            self._record.warn(error.reason, f"the pictures have no scores: {error}")
            return
        ranked = sorted(zip(images, scores, strict=True), key=lambda pair: (-pair[1], pair[0].index))
        self._record.ranked(stage, ranked, [])
