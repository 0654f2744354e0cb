"""`make test-attacks`: tries everything on a gateway of 1 GiB, on stages of their documented memory, on files, disk and clock.

`python -m tests.attacks [WORD]` tries those with the word in their names. Each line has the peak memory, the longest delay of
another caller of the process, that of a caller of an idle process at the same moment, and the result. The second is what
the machine's load costs. Exits with 1 when a process ended, took more memory than it has, failed the other caller, delayed
it by more than a second beyond the load, or answered with an error of its own.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.attacks.attempts import Attempt, attempts
from tests.attacks.disk_attempts import DiskAttempt, disk_attempts
from tests.attacks.file_attempts import file_attempts
from tests.attacks.protocol_attempts import http2_stage_attempts, protocol_attempts
from tests.attacks.stage_attempts import MEMORY_BYTES, stage_attempts
from tests.attacks.storage_attempts import clock_attempts, storage_attempts
from tests.attacks.victim import (
    MIB,
    Bystander,
    Observed,
    Victim,
    gateway_victim,
    serving_bystander,
    stage_victim,
)

NOBODY = [part for stage in ("generator", "refiner", "upscaler") for part in (f"--{stage}", "127.0.0.1:1")]
SLOW_S = 1.0
STAGES = ("upscaler", "refiner", "generator")


async def attack_gateway(chosen: Sequence[Attempt], *, judges_delays: bool = False) -> list[str]:
    """Prints a line for each attempt; returns what went wrong. Where delays do not count, those that wait run beside others."""
    with tempfile.TemporaryDirectory() as folder:
        return await _attack(gateway_victim(Path(folder), *NOBODY), chosen, judges_delays=judges_delays)


async def attack_stage(stage: str, chosen: Sequence[Attempt]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        victim = stage_victim(Path(folder), stage, MEMORY_BYTES[stage])
        return await _attack(victim, chosen, judges_delays=True)


async def attack_disk(attempt: DiskAttempt) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        result, problems = await attempt.run(Path(folder))
    sys.stdout.write(f"{attempt.name}: {result}\n")
    return [f"{attempt.name}: {one}" for one in problems]


async def attack_storage(attempt: Attempt) -> list[str]:
    """On a gateway of its own. The other caller may fail: what it needs is gone."""
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_victim(Path(folder), *NOBODY) as victim:
            try:
                result = await attempt.attack(victim)
            except AssertionError as error:
                result = str(error)
            has_ended = not victim.is_alive
            sys.stdout.write(f"{victim.peak() / MIB:6.0f} MiB  {attempt.name}: {result}\n")
            log = victim.log.read_text()
    problems = [f"{attempt.name}: {result}"] if "INTERNAL" in result or has_ended else []
    return problems + [f"{attempt.name}: a traceback" for _ in range("Traceback" in log)]


def attack_files(word: str) -> tuple[int, list[str]]:
    num_attempts, problems = 0, []
    for attempt in file_attempts():
        if word not in attempt.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result, wrong = attempt.attack(Path(folder))
        sys.stdout.write(f"{attempt.name}: {result}\n")
        sys.stdout.flush()
        problems += [f"{attempt.name}: {one}" for one in wrong]
        num_attempts += 1
    return num_attempts, problems


async def _attack(
    opening: AbstractAsyncContextManager[Victim], chosen: Sequence[Attempt], *, judges_delays: bool
) -> list[str]:
    problems = []
    slowest, largest = 0.0, 0
    async with AsyncExitStack() as stack:
        victim = await stack.enter_async_context(opening)
        bystander = await stack.enter_async_context(serving_bystander(victim))
        control = await stack.enter_async_context(_idle_control()) if judges_delays else None
        beside = [] if judges_delays else [one for one in chosen if one.waits]
        waiting = [asyncio.create_task(one.attack(victim)) for one in beside]
        for attempt in sorted(chosen, key=lambda one: one in beside):
            await _observe(bystander, control)
            result = await (waiting[beside.index(attempt)] if attempt in beside else attempt.attack(victim))
            seen, idle = await _observe(bystander, control)
            beyond_s = seen.longest_s - idle.longest_s
            slowest, largest = max(slowest, beyond_s), max(largest, seen.peak_bytes)
            sys.stdout.write(_line(attempt, result, seen, idle))
            sys.stdout.flush()
            bad = [*seen.failures]
            if "INTERNAL" in result or " 500" in f" {result}":
                bad.append(result)
            if judges_delays and beyond_s > SLOW_S:
                bad.append(
                    f"another caller waited {seen.longest_s:.2f} s, and {idle.longest_s:.2f} s for an idle process"
                )
            problems += [f"{attempt.name}: {one}" for one in bad]
            if not victim.is_alive:
                break
        log = victim.log.read_text()
    sys.stdout.write(
        f"{len(chosen)} attempts; peak {largest / MIB:.0f} MiB of {victim.memory_bytes / MIB:.0f}, longest delay beyond an "
        f"idle process {slowest:.2f} s\n"
    )
    return problems + [line for line in log.splitlines() if "Traceback" in line]


async def _observe(bystander: Bystander, control: Bystander | None) -> tuple[Observed, Observed]:
    if control is None:
        return await bystander.observe(), Observed()
    return await asyncio.gather(bystander.observe(), control.observe())


def _line(attempt: Attempt, result: str, seen: Observed, idle: Observed) -> str:
    note = " SLOW" if seen.longest_s - idle.longest_s > SLOW_S else ""
    delays = f"{seen.longest_s:6.2f} s, idle {idle.longest_s:5.2f} s{note}"
    return f"{seen.peak_bytes / MIB:6.0f} MiB {delays}  {attempt.name}: {result}\n"


@asynccontextmanager
async def _idle_control() -> AsyncIterator[Bystander]:
    """A gateway that nobody attacks, and a caller of it: what it waits for is the machine."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        idle = await stack.enter_async_context(gateway_victim(Path(folder), *NOBODY))
        yield await stack.enter_async_context(serving_bystander(idle))


async def attack_processes(word: str) -> tuple[int, list[str]]:
    problems, num_attempts = [], 0
    chosen = [one for one in (*attempts(), *protocol_attempts(), *clock_attempts()) if word in one.name]
    if chosen:
        problems += await attack_gateway(chosen, judges_delays=True)
        num_attempts += len(chosen)
    for attempt in storage_attempts():
        if word in attempt.name:
            problems += await attack_storage(attempt)
            num_attempts += 1
    for full in disk_attempts():
        if word in full.name:
            problems += await attack_disk(full)
            num_attempts += 1
    for stage in STAGES:
        tried = (*stage_attempts(stage), *http2_stage_attempts(stage))
        if some := [one for one in tried if word in one.name]:
            problems += await attack_stage(stage, some)
            num_attempts += len(some)
    return num_attempts, problems


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    num_attempts, problems = asyncio.run(attack_processes(word))
    num_files, more = attack_files(word)
    for problem in [*problems, *more]:
        sys.stdout.write(f"FAILED {problem}\n")
    sys.stdout.write(f"{num_attempts + num_files} attempts, {len(problems) + len(more)} failures\n")
    raise SystemExit(1 if problems or more else 0)


if __name__ == "__main__":
    main()
