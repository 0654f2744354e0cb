"""The figures of docs/scaling.md from measured service times.

    triptych bench measure > times.json
    python -m tests.bench.scaling times.json

Prints the page's blocks in their order, as Markdown: the times, what a replica can do, the simulated loads, and what one
more replica of each stage would change. A replica's price is 1 an hour.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from triptych.cli.bench import read_times
from triptych.cli.simulation import (
    STAGES,
    Eviction,
    Load,
    Outcome,
    StageModel,
    fewest_replicas,
    scale_next,
    simulate,
)

PICTURES = (8, 8, 1)
# Of the narrowest stage with one replica: so much of its capacity is a load that one more replica shows at.
NEARLY_FULL = 0.65
MILLION_A_DAY = 2451


def runs_an_hour(stage: StageModel, pictures: int) -> float:
    return 3600 * stage.max_rate / pictures


def row(stages: list[StageModel], rate: int, hours: float, evictions: float = 0.0) -> tuple[str, Outcome]:
    outcome = simulate(stages, Load(rate / 3600, PICTURES), Eviction(evictions), hours=hours)
    replicas = ", ".join(str(stage.replicas) for stage in stages)
    said = f"`--hours {hours:g}" + (f" --evictions {evictions:g}`" if evictions else "`")
    first, whole = (
        ", ".join(f"{s:.0f} s" for s in both) for both in (outcome.first_picture_s, outcome.whole_run_s)
    )
    cost = f"{outcome.cost_per_1000:.1f}" if outcome.cost_per_1000 >= 1 else f"{outcome.cost_per_1000:.2f}"
    return f"| {rate:,} ({said}) | {rate * 24 * 17:,} | {replicas} | {first} | {whole} | {cost} |", outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("times", type=Path)
    times = parser.parse_args().times
    one = read_times(times, (1.0, 1.0, 1.0))

    print("{", end="")
    print(
        ",\n ".join(f'"{name}": {json.dumps(json.loads(times.read_text())[name])}' for name in STAGES) + "}"
    )
    print("\n| | Pictures an hour | Runs of 17 an hour |\n|---|---|---|")
    for name, stage, pictures in zip(STAGES, one, PICTURES, strict=True):
        full_s = stage.seconds(stage.slots)
        an_hour = 3600 * stage.max_rate
        shown = f"3600 * {stage.slots} / {full_s:.2f} = {an_hour:,.0f}"
        print(f"| {name} | {shown} | {runs_an_hour(stage, pictures):,.0f} |")

    print("\n| Runs an hour | Pictures a day | Replicas G, R, U | First sketch | Whole run |", end="")
    print(" Replica-hours for 1,000 pictures |\n|---|---|---|---|---|---|")
    capacity = [runs_an_hour(stage, pictures) for stage, pictures in zip(one, PICTURES, strict=True)]
    narrowest = capacity.index(min(capacity))
    busy = round(NEARLY_FULL * min(capacity), -1) or 1
    wider = [replace(stage, replicas=2) if place == narrowest else stage for place, stage in enumerate(one)]
    print(row(one, 6, 100)[0])
    print(row(one, 60, 24)[0])
    shown, nearly_full = row(one, int(busy), 24)
    print(shown)
    print(row(wider, int(busy), 24)[0])
    for rate, hours in ((600, 8.0), (MILLION_A_DAY, 3.0)):
        print(row(fewest_replicas(one, Load(rate / 3600, PICTURES)), rate, hours)[0])
    many = fewest_replicas(one, Load(MILLION_A_DAY / 3600, PICTURES))
    shown, evicted = row(many, MILLION_A_DAY, 3, 0.1)
    print(shown)

    load = Load(busy / 3600, PICTURES)
    following = scale_next(one, load, Eviction(), hours=24, seed=0)
    print(f"\nAt {busy:g} runs an hour with one replica each:")
    for name, use in nearly_full.utilisation.items():
        print(
            f"- {name}: {use:.0%} of its slots in use; with one more {following[name].whole_run_s[1]:.0f} s"
        )
    print(f"With evictions {evicted.num_repeated} pictures were begun again.")


if __name__ == "__main__":
    main()
