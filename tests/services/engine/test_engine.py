"""The engine with a scripted stepper: who steps when, who hears what, and what a failure or a leaving caller touches."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from services.engine.engine import Engine
from services.engine.events import Accepted, EncodedPicture, EventMailbox, Failed, Finished, Preview, Progress
from services.engine.stepper import JobRequest
from services.errors import DeadlineExceeded, DeviceOutOfMemory, QueueFull, WorkerEvicted


@dataclass(frozen=True)
class Job:
    shade: int
    num_steps: int = 3
    fails_in: str = ""
    error: type[Exception] = ValueError


class Scripted:
    """Pictures of one shade. With a gate, every step waits until the test lets it pass."""

    def __init__(self, num_slots: int, *, gated: bool = False, decode_gated: bool = False) -> None:
        self.num_slots = num_slots
        self.jobs: dict[int, Job] = {}
        self.batches: list[list[int]] = []
        self.admitted: list[int] = []
        self.gate = threading.Semaphore(0) if gated else None
        self.step_begun = threading.Semaphore(0)
        self.decoded: list[list[int]] = []
        self.decode_gate = threading.Semaphore(0) if decode_gated else None
        self.decode_begun = threading.Semaphore(0)

    def let_pass(self, num_steps: int = 1) -> None:
        self.gate.release(num_steps)

    async def begun(self) -> None:
        await asyncio.to_thread(self.step_begun.acquire)

    def warm_up(self) -> None:
        pass

    def admit(self, slot: int, job: Job) -> int:
        self.jobs[slot] = job
        self.admitted.append(job.shade)
        self._fail("admit", [slot])
        return job.num_steps

    def step(self, slots: Sequence[int]) -> None:
        self.step_begun.release()
        if self.gate is not None:
            self.gate.acquire()
        self._fail("step", slots)
        self.batches.append([self.jobs[slot].shade for slot in slots])

    def preview(self, slot: int) -> tuple[Job, bool]:
        self._fail("preview", [slot])
        return self.jobs[slot], False

    def result(self, slot: int) -> tuple[Job, bool]:
        self._fail("result", [slot])
        return self.jobs[slot], True

    def decode(self, views: Sequence[tuple[Job, bool]]) -> list[np.ndarray]:
        self.decoded.append([job.shade for job, is_finished in views if is_finished])
        for job, is_finished in views:
            if job.fails_in == ("decode" if is_finished else "decode preview"):
                raise job.error("scripted")
            if is_finished and self.decode_gate is not None:
                self.decode_begun.release()
                self.decode_gate.acquire()
        return [np.full((4, 4, 3), job.shade, np.uint8) for job, _ in views]

    def release(self, slot: int) -> None:
        if self.jobs[slot].fails_in == "release":
            raise RuntimeError("a bug")
        del self.jobs[slot]

    def _fail(self, where: str, slots: Sequence[int]) -> None:
        for slot in slots:
            if self.jobs[slot].fails_in == where:
                raise self.jobs[slot].error("scripted")


def tickets(*jobs: Job, preview_every: int = 0) -> list[JobRequest[Job]]:
    return [JobRequest(index, job, preview_every) for index, job in enumerate(jobs)]


async def collect(engine: Engine[Job], *jobs: Job, caller: str = "me", **options):
    async with engine.submit(tickets(*jobs, **options), caller=caller) as events:
        return [event async for event in events]


async def until(holds) -> None:
    """The device thread has no event for the tests; ask between the loop's turns."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)


def outcome(events) -> dict[int, str]:
    return {e.index: type(e).__name__ for e in events if isinstance(e, Finished | Failed)}


@asynccontextmanager
async def running(stepper: Scripted, max_queue: int = 64, **options):
    async with Engine(stepper, max_queue=max_queue, **options) as engine:
        try:
            yield engine
        finally:
            for gate in (stepper.gate, stepper.decode_gate):
                if gate is not None:
                    gate.release(10_000)


async def test_a_job_is_accepted_then_advances_then_is_there():
    async with running(Scripted(2)) as engine:
        events = await collect(engine, Job(shade=7, num_steps=3), preview_every=1)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    assert events[-1].picture.width == 4
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(set(steps))


async def test_a_job_joins_a_running_batch_between_two_steps():
    stepper = Scripted(2, gated=True)
    async with running(stepper) as engine:
        first = asyncio.create_task(collect(engine, Job(shade=1, num_steps=3)))
        await stepper.begun()
        second = asyncio.create_task(collect(engine, Job(shade=2, num_steps=1), caller="you"))
        await until(lambda: engine.num_waiting > 0)
        stepper.let_pass(3)
        await asyncio.gather(first, second)
    assert stepper.batches == [[1], [1, 2], [1]]


async def test_callers_take_turns_however_much_one_asks_for():
    stepper = Scripted(1, gated=True)
    async with running(stepper) as engine:
        greedy = asyncio.create_task(collect(engine, *(Job(shade, 1) for shade in range(4)), caller="greedy"))
        await stepper.begun()
        modest = asyncio.create_task(collect(engine, Job(100, 1), caller="modest"))
        await until(lambda: engine.num_waiting >= 4)
        stepper.let_pass(5)
        await asyncio.gather(greedy, modest)
    assert stepper.admitted.index(100) <= 2


async def test_a_waiting_caller_hears_its_place_fall_to_zero():
    stepper = Scripted(1, gated=True)
    async with running(stepper) as engine:
        first = asyncio.create_task(collect(engine, Job(1, 1), Job(2, 1), caller="first"))
        await stepper.begun()
        second = asyncio.create_task(collect(engine, Job(3, 1), caller="second"))
        await until(lambda: engine.num_waiting >= 2)
        stepper.let_pass(3)
        await first
        places = [event.position for event in await second if isinstance(event, Accepted)]
    assert places[0] == 2
    assert places == sorted(places, reverse=True)
    assert places[-1] == 0


async def test_beyond_the_queue_a_request_is_refused_whole_with_a_time_to_return():
    stepper = Scripted(1, gated=True)
    async with running(stepper, max_queue=2) as engine:
        first = asyncio.create_task(collect(engine, Job(1, 1)))
        await stepper.begun()
        with pytest.raises(QueueFull, match="room for 2 more, got 3") as raised:
            await collect(engine, Job(2), Job(3), Job(4))
        assert engine.num_waiting == 0
        stepper.let_pass(1)
        await first
    assert raised.value.retry_after_s >= 1


@pytest.mark.parametrize("where", ["admit", "step", "result", "decode"])
async def test_a_job_that_fails_fails_alone(where):
    async with running(Scripted(4)) as engine:
        events = await collect(engine, Job(1), Job(2, fails_in=where), Job(3), preview_every=1)
    assert outcome(events) == {0: "Finished", 1: "Failed", 2: "Finished"}


@pytest.mark.parametrize("where", ["preview", "decode preview"])
async def test_a_preview_that_fails_is_left_out_and_the_pictures_go_on(where):
    async with running(Scripted(2)) as engine:
        events = await collect(engine, Job(1, fails_in=where), Job(2), preview_every=1)
    assert outcome(events) == {0: "Finished", 1: "Finished"}
    assert not [event for event in events if isinstance(event, Preview) and event.index == 0]


async def test_an_internal_message_does_not_reach_the_caller():
    async with running(Scripted(1)) as engine:
        events = await collect(engine, Job(1, fails_in="step"))
    assert events[-1].error.reason == "INTERNAL"
    assert "scripted" not in str(events[-1].error)


async def test_running_out_of_memory_is_said():
    async with running(Scripted(1)) as engine:
        events = await collect(engine, Job(1, fails_in="step", error=MemoryError))
    assert isinstance(events[-1].error, DeviceOutOfMemory)


SUBSETS = [
    (n, gone) for n in range(1, 5) for size in range(1, n + 1) for gone in combinations(range(n), size)
]


# How many of a leaver's steps may be made, by the phase that it leaves in; all jobs have three but where they finish.
PHASES = {"queued": 0, "admitted": 1, "mid-step": 2, "decoding": 1, "encoding": 1, "delivering": 1}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("num_jobs", "gone"), SUBSETS)
async def test_cancelling_any_of_a_batch_leaves_the_others_untouched(phase, num_jobs, gone):
    """Each job is a request of its own; `gone` leave in the phase."""
    stepper = Scripted(num_jobs + 1, gated=True, decode_gated=phase == "decoding")
    num_steps = 1 if phase in ("decoding", "encoding", "delivering") else 3
    async with running(stepper) as engine, AsyncExitStack() as stack:
        blocker = asyncio.create_task(collect(engine, Job(99, num_steps=1), caller="blocker"))
        await stepper.begun()
        streams, leave = {}, {}
        for i in range(num_jobs):
            leave[i] = await stack.enter_async_context(AsyncExitStack())
            job = tickets(Job(shade=i, num_steps=num_steps))
            streams[i] = await leave[i].enter_async_context(engine.submit(job, caller=str(i)))
        await advance_to(phase, stepper, engine)
        for i in gone:
            await leave[i].aclose()
        if stepper.decode_gate is not None:
            stepper.decode_gate.release(100)
        stepper.let_pass(100)
        for i in range(num_jobs):
            if i not in gone:
                last = [event async for event in streams[i]][-1]
                assert isinstance(last, Finished)
                assert last.timing.compute_s >= 0
        await blocker
        await until(lambda: engine.num_running == 0)
    steps_of_leavers = [shade for batch in stepper.batches for shade in batch if shade in gone]
    assert len(steps_of_leavers) <= len(gone) * PHASES[phase]
    assert stepper.jobs == {}


async def advance_to(phase: str, stepper: Scripted, engine: Engine[Job]) -> None:
    """From the only step of a job that the others wait behind."""
    if phase == "queued":
        return
    stepper.let_pass()
    await stepper.begun()
    if phase == "admitted":
        return
    stepper.let_pass()
    if phase == "mid-step":
        await stepper.begun()
        return
    if phase == "decoding":
        await asyncio.to_thread(stepper.decode_begun.acquire)
        stepper.decode_gate.release()  # of the job before
        await asyncio.to_thread(stepper.decode_begun.acquire)
    await until(lambda: engine.num_running == 0)
    if phase == "delivering":
        # What is finished later is delivered later.
        stepper.let_pass()
        await collect(engine, Job(98, num_steps=1), caller="probe")


async def test_a_reader_that_stops_reading_costs_bounded_memory_and_nobodys_time():
    async with (
        running(Scripted(2)) as engine,
        engine.submit(tickets(Job(1, num_steps=500), preview_every=1), caller="asleep") as unread,
    ):
        await collect(engine, Job(2, num_steps=20), caller="awake")
        await until(lambda: engine.num_running == 0)
        events = [event async for event in unread]
    assert len(events) < 10  # of 500 steps and as many previews
    assert isinstance(events[-1], Finished)


def test_a_newer_preview_replaces_one_that_was_not_read():
    mailbox = EventMailbox(num_jobs=1)
    for step in (1, 2, 3):
        mailbox.put(Preview(0, step, 9, EncodedPicture(b"", 4, 4)))
        mailbox.put(Progress(0, step, 9))
    assert [event.step for event in mailbox._events.values()] == [3, 3]


async def test_steps_go_on_while_a_finished_picture_is_decoded():
    stepper = Scripted(2, decode_gated=True)
    async with running(stepper) as engine:
        first = asyncio.create_task(collect(engine, Job(1, num_steps=1)))
        await asyncio.to_thread(stepper.decode_begun.acquire)
        async with engine.submit(tickets(Job(2, num_steps=5)), caller="you"):
            await until(lambda: len(stepper.batches) == 6)
        stepper.decode_gate.release(10)
        await first


async def test_no_job_is_admitted_while_as_many_wait_for_decoding_as_there_are_slots():
    stepper = Scripted(2, decode_gated=True)
    async with running(stepper) as engine:
        first = asyncio.create_task(collect(engine, Job(1, 1), Job(2, 1), Job(3, 1)))
        await asyncio.to_thread(stepper.decode_begun.acquire)
        await engine.run_between_steps(lambda: None)
        assert stepper.admitted == [1, 2]
        stepper.decode_gate.release(10)
        assert outcome(await first) == {0: "Finished", 1: "Finished", 2: "Finished"}


async def test_a_cancelled_picture_is_not_decoded_if_it_still_waits_for_that():
    stepper = Scripted(2, decode_gated=True)
    async with running(stepper) as engine:
        first = asyncio.create_task(collect(engine, Job(1, num_steps=1)))
        await asyncio.to_thread(stepper.decode_begun.acquire)
        async with engine.submit(tickets(Job(2, num_steps=1)), caller="you"):
            await until(lambda: len(stepper.batches) == 2 and engine.num_running == 0)
        stepper.decode_gate.release(10)
        await first
    assert stepper.decoded == [[1]]


async def test_a_job_whose_deadline_passes_stops_before_its_next_step():
    stepper = Scripted(1, gated=True)
    now = [0.0]
    async with (
        running(stepper, clock=lambda: now[0]) as engine,
        engine.submit(tickets(Job(1, num_steps=50)), caller="hasty", timeout_s=5) as events,
    ):
        await stepper.begun()
        now[0] = 6.0
        stepper.let_pass(100)
        last = [event async for event in events][-1]
    assert isinstance(last.error, DeadlineExceeded)
    assert len(stepper.batches) == 1


async def test_closing_fails_what_is_left_as_evicted():
    stepper = Scripted(1, gated=True)
    async with running(stepper) as engine:
        left = asyncio.create_task(collect(engine, Job(1, num_steps=50), Job(2)))
        await stepper.begun()
    events = await left
    assert outcome(events) == {0: "Failed", 1: "Failed"}
    assert {type(e.error) for e in events if isinstance(e, Failed)} == {WorkerEvicted}


async def test_a_bug_on_the_device_thread_fails_all_jobs_and_is_noticed():
    async with running(Scripted(1)) as engine:
        events = await collect(engine, Job(1, fails_in="release"), Job(2))
        await asyncio.wait_for(engine.failed.wait(), 120)
    assert outcome(events)[1] == "Failed"


async def test_short_work_runs_on_the_device_thread_between_steps():
    async with running(Scripted(1)) as engine:
        assert await engine.run_between_steps(lambda: threading.current_thread().name) == "device"


async def test_short_work_raises_to_the_caller_that_asked_for_it():
    async with running(Scripted(1)) as engine:
        with pytest.raises(ZeroDivisionError):
            await engine.run_between_steps(lambda: 1 // 0)


class Leaping(Scripted):
    """Makes as many steps at once as it is allowed to."""

    def __init__(self, num_slots: int, *, gated: bool = False) -> None:
        super().__init__(num_slots, gated=gated)
        self.limits: list[int] = []

    def step_many(self, slots: Sequence[int], limit: int) -> int:
        self.limits.append(limit)
        self.step(slots)
        return limit


async def test_several_steps_at_once_stop_where_an_image_is_done_or_a_preview_is_due():
    async with running(stepper := Leaping(2)) as engine:
        events = await collect(engine, Job(1, 11), Job(2, 12), preview_every=4)
    assert outcome(events) == {0: "Finished", 1: "Finished"}
    # To 4, 8, the end of the first at 11, and that of the second.
    assert stepper.limits == [4, 4, 3, 1]
    # Of progress that a reader has not taken yet, only the latest is kept.
    steps = [event.step for event in events if isinstance(event, Progress) and event.index == 1]
    assert steps == sorted(set(steps))
    assert set(steps) <= {4, 8, 11}


async def test_an_image_of_a_batch_that_fails_fails_alone_with_several_steps_at_once():
    async with running(Leaping(2)) as engine:
        events = await collect(engine, Job(1, fails_in="step"), Job(2))
    assert outcome(events) == {0: "Failed", 1: "Finished"}
