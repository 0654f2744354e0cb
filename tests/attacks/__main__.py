"""`make test-attacks`: tries everything on a gateway of 1 GiB and prints what each attempt did to it and to another caller.

`python -m tests.attacks [WORD]` tries those with the word in their names. Exits with 1 when the process ended, took more
memory than it has, failed the other caller, or answered with an error of its own.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.attacks.attempts import Attempt, attempts
from tests.attacks.victim import MIB, gateway_victim, serving_bystander

NOBODY = [part for stage in ("generator", "refiner", "upscaler") for part in (f"--{stage}", "127.0.0.1:1")]
SLOW_S = 1.0


async def attack_gateway(chosen: list[Attempt]) -> list[str]:
    """Prints a line for each attempt; returns what went wrong. Delays are printed and not judged: machines differ."""
    problems = []
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_victim(Path(folder), *NOBODY) as victim, serving_bystander(victim) as bystander:
            for attempt in chosen:
                await bystander.observe()
                result = await attempt.attack(victim)
                seen = await bystander.observe()
                slowest, largest = max(slowest, seen.longest_s), max(largest, seen.peak_bytes)
                note = " SLOW" if seen.longest_s > SLOW_S else ""
                sys.stdout.write(
                    f"{seen.peak_bytes / MIB:6.0f} MiB {seen.longest_s:6.2f} s{note}  {attempt.name}: {result}\n"
                )
                sys.stdout.flush()
                bad = [*seen.failures]
                if "INTERNAL" in result or " 500" in f" {result}":
                    bad.append(result)
                problems += [f"{attempt.name}: {one}" for one in bad]
                if not victim.is_alive:
                    break
            log = victim.log.read_text()
    sys.stdout.write(f"{len(chosen)} attempts; peak {largest / MIB:.0f} MiB, longest delay {slowest:.2f} s\n")
    problems += [line for line in log.splitlines() if "Traceback" in line]
    return problems


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [one for one in attempts() if word in one.name]
    problems = asyncio.run(attack_gateway(chosen))
    for problem in problems:
        sys.stdout.write(f"FAILED {problem}\n")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
