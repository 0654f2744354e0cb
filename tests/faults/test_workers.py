"""A worker of each stage dies, hangs, drains or answers nonsense, at its first, a middle and its last step."""

import signal
import time

import pytest

from tests.faults.conftest import GRACE_S
from tests.faults.processes import WORKERS
from tests.faults.run_observer import check_whole, spec
from tests.faults.stage_process import NUM_STEPS

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

STEPS = {"first": 1, "middle": NUM_STEPS // 2 + 1, "last": NUM_STEPS}
NOTICED_WITHIN_S = 10.0


def cases(*light):
    """Every stage and step; those named run in `make test`, too."""
    every = [(stage, step) for stage in WORKERS for step in STEPS]
    return pytest.mark.parametrize(
        ("stage", "step"),
        [pytest.param(*case, marks=() if case in light else pytest.mark.faults) for case in every],
    )


async def begin_and_hold(scene, stage, step):
    """A run, one of whose pictures is held at that step of a worker; returns what the case needs."""
    victim = scene.cluster.workers[stage][0]
    victim.forget_holding()
    await victim.order(hold_at=STEPS[step])
    asked = spec()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await victim.heard("holding")
    return victim, asked, name, watcher


def attempts(log):
    return max(event.stage_started.attempt for event in log if event.HasField("stage_started"))


def reasons(log):
    return {event.warning.reason for event in log if event.HasField("warning")}


@cases(("generator", "first"), ("upscaler", "last"))
async def test_killed(scene, row, stage, step):
    victim, asked, name, watcher = await begin_and_hold(scene, stage, step)
    killed_at = time.monotonic()
    await victim.kill()
    await watcher.sees(lambda event: event.HasField("warning"))
    noticed_s = time.monotonic() - killed_at
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    assert attempts(log) == 2
    assert reasons(log) == {"WORKER_LOST"}
    row(f"noticed after {noticed_s:.2f} s, made elsewhere")


@cases()
async def test_stopped(scene, row, stage, step):
    victim, asked, name, watcher = await begin_and_hold(scene, stage, step)
    stopped_at = time.monotonic()
    victim.send(signal.SIGSTOP)
    await watcher.sees(lambda event: event.HasField("warning"))
    noticed_s = time.monotonic() - stopped_at
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    assert attempts(log) == 2
    row(f"noticed after {noticed_s:.1f} s, made elsewhere")
    assert noticed_s < NOTICED_WITHIN_S


@cases()
async def test_drained_and_finishes(scene, row, stage, step):
    victim, asked, name, watcher = await begin_and_hold(scene, stage, step)
    drained_at = time.monotonic()
    victim.send(signal.SIGTERM)
    await victim.order(go=True)
    assert await victim.ended() == 0
    row(f"its picture was finished, the process ended with 0 after {time.monotonic() - drained_at:.1f} s")
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    assert reasons(log) <= {"WORKER_EVICTED", "WORKER_LOST"}


@cases(("refiner", "middle"))
async def test_drained_and_hands_over(scene, row, stage, step):
    victim, asked, name, watcher = await begin_and_hold(scene, stage, step)
    drained_at = time.monotonic()
    victim.send(signal.SIGTERM)
    await watcher.sees(lambda event: event.HasField("warning"))
    handed_over_s = time.monotonic() - drained_at
    await victim.order(go=True)
    assert await victim.ended() == 0
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    assert attempts(log) == 2
    row(f"handed over after {handed_over_s:.1f} s of a grace of {GRACE_S:g} s")
    assert handed_over_s < GRACE_S + 1


LIGHT = {("generator", "no picture", "last"), ("refiner", "bug", "middle")}
GARBAGE = {
    "empty event": STEPS,
    "another index": STEPS,
    "bug": STEPS,
    "ends early": STEPS,
    "another seed": ["last"],
    "no data": ["last"],
    "no picture": ["last"],
    "half a picture": ["last"],
    "another size": ["last"],
    "twice": ["last"],
}


@pytest.mark.parametrize(
    ("stage", "garbage", "step"),
    [
        pytest.param(
            stage,
            garbage,
            step,
            marks=() if (stage, garbage, step) in LIGHT else pytest.mark.faults,
            id=f"{stage}-{garbage.replace(' ', '_')}-{step}",
        )
        for stage in WORKERS
        for garbage, steps in GARBAGE.items()
        for step in steps
        # Enlarging draws nothing, so its answers have no seed to check.
        if not (stage == "upscaler" and garbage == "another seed")
    ],
)
async def test_garbage(scene, row, stage, garbage, step):
    victim = scene.cluster.workers[stage][0]
    victim.forget_holding()
    await victim.order(garbage=garbage, at=STEPS[step])
    asked = spec()
    name = await scene.caller.create(asked)
    watcher = scene.watch(name)
    await victim.heard("spoilt")
    await watcher.finished()
    log = await check_whole(scene.caller, scene.cluster.address, name, asked, [watcher])
    row(f"{', '.join(sorted(reasons(log))) or 'nothing'} told, attempts {attempts(log)}")
