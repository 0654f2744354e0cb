"""A queueing simulation of a deployment: batching replicas, random arrivals, evictions.

Every replica advances up to `slots` pictures together; with b of them a picture takes `fixed_s + each_s * b` seconds,
which is how batching pays: the fixed part is shared. Pictures go to the replica with the fewest, as the gateway does
it; what an evicted replica was making is made again elsewhere.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from triptych import stages

STAGES = tuple(stage.name for stage in stages.STAGES)
HOUR_S = 3600.0
# So much of the simulated time passes before anything counts: an empty system flatters.
WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class StageModel:
    """One stage's replicas and how fast one of them is."""

    replicas: int
    slots: int
    fixed_s: float
    each_s: float
    price_per_hour: float = 0.0

    def seconds(self, batch: int) -> float:
        """A picture's time in a batch that stays as large."""
        return self.fixed_s + self.each_s * batch

    @property
    def max_rate(self) -> float:
        """Pictures a second of all replicas with full batches."""
        return self.replicas * self.slots / self.seconds(self.slots)


@dataclass(frozen=True)
class Load:
    """What callers ask for: runs a second, and how many pictures each stage of a run makes."""

    runs_per_s: float
    pictures: tuple[int, int, int] = (8, 8, 1)


@dataclass(frozen=True)
class Eviction:
    """How often a replica's machine is taken away, and how long another one needs until it serves."""

    per_hour: float = 0.0
    replacement_s: float = 300.0


@dataclass(frozen=True)
class Outcome:
    """What the simulated hours showed; times in seconds, money in the prices' currency."""

    num_runs: int
    first_picture_s: tuple[float, float]  # median, 95th percentile; from a run's arrival to its first sketch
    whole_run_s: tuple[float, float]
    utilisation: dict[str, float]  # busy slots of all slots
    waiting: dict[str, float]  # pictures in each stage's queue, on average
    num_repeated: int  # pictures that were begun again after an eviction
    cost_per_1000: float
    is_stable: bool  # whether the load is below what every stage can do


@dataclass(eq=False)
class _Picture:
    run: "_Run"
    stage: int
    left: float = 1.0


@dataclass(eq=False)
class _Run:
    arrived_at: float
    missing: list[int]
    made: int = 0
    first_at: float | None = None


@dataclass(eq=False)
class _Replica:
    stage: int
    model: StageModel
    in_progress: list[_Picture] = field(default_factory=list)
    updated_at: float = 0.0
    # Of the event that is to come for it; an older one in the heap is void.
    version: int = 0
    is_up: bool = True

    def advance(self, now: float) -> None:
        if self.in_progress:
            done = (now - self.updated_at) / self.model.seconds(len(self.in_progress))
            for picture in self.in_progress:
                picture.left -= done
        self.updated_at = now

    def next_done_at(self) -> float:
        least = min(picture.left for picture in self.in_progress)
        return self.updated_at + max(0.0, least) * self.model.seconds(len(self.in_progress))


class _Simulation:
    def __init__(
        self, stages: Sequence[StageModel], load: Load, eviction: Eviction, hours: float, seed: int
    ) -> None:
        self.stages, self.load, self.eviction = stages, load, eviction
        self.end = hours * HOUR_S
        self.rng = np.random.default_rng(seed)
        self.replicas = [
            [_Replica(stage, model) for _ in range(model.replicas)] for stage, model in enumerate(stages)
        ]
        self.queues: list[deque[_Picture]] = [deque() for _ in stages]
        self.events: list[tuple[float, int, str, _Replica | None, int]] = []
        self.num_events = 0
        self.finished: list[_Run] = []
        self.whole_s: list[float] = []
        self.busy_s = [0.0] * len(stages)
        self.waiting_s = [0.0] * len(stages)
        self.num_repeated = 0
        self.looked_at = 0.0

    def run(self) -> None:
        self._later(self.rng.exponential(1 / self.load.runs_per_s), "arrival")
        if self.eviction.per_hour:
            for one in (one for stage in self.replicas for one in stage):
                self._later(self._time_to_eviction(), "eviction", one)
        while self.events:
            now, _, kind, replica, version = heapq.heappop(self.events)
            if now > self.end:
                break
            self._account(now)
            if kind == "arrival":
                self._arrive(now)
            elif replica is not None and kind == "done" and version == replica.version:
                self._finish(replica, now)
            elif replica is not None and kind == "eviction":
                self._evict(replica, now)
            elif replica is not None and kind == "replaced":
                replica.is_up, replica.updated_at = True, now
                self._later(now + self._time_to_eviction(), "eviction", replica)
                self._fill(replica.stage, now)

    def _later(self, at: float, kind: str, replica: _Replica | None = None, version: int = 0) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (at, self.num_events, kind, replica, version))

    def _time_to_eviction(self) -> float:
        return float(self.rng.exponential(HOUR_S / self.eviction.per_hour))

    def _account(self, now: float) -> None:
        if now > self.end * WARM_UP_SHARE:
            passed = now - max(self.looked_at, self.end * WARM_UP_SHARE)
            for stage, replicas in enumerate(self.replicas):
                self.busy_s[stage] += passed * sum(len(replica.in_progress) for replica in replicas)
                self.waiting_s[stage] += passed * len(self.queues[stage])
        self.looked_at = now

    def _arrive(self, now: float) -> None:
        self._later(now + self.rng.exponential(1 / self.load.runs_per_s), "arrival")
        run = _Run(now, list(self.load.pictures))
        first = next(stage for stage, count in enumerate(run.missing) if count)
        self._enqueue(run, first, run.missing[first], now)

    def _enqueue(self, run: _Run, stage: int, count: int, now: float) -> None:
        self.queues[stage].extend(_Picture(run, stage) for _ in range(count))
        self._fill(stage, now)

    def _fill(self, stage: int, now: float) -> None:
        queue, changed = self.queues[stage], set()
        while queue:
            free = [
                one for one in self.replicas[stage] if one.is_up and len(one.in_progress) < one.model.slots
            ]
            if not free:
                break
            replica = min(free, key=lambda one: len(one.in_progress))
            replica.advance(now)
            replica.in_progress.append(queue.popleft())
            changed.add(replica)
        for replica in changed:
            self._schedule(replica)

    def _schedule(self, replica: _Replica) -> None:
        replica.version += 1
        if replica.in_progress:
            self._later(replica.next_done_at(), "done", replica, replica.version)

    def _finish(self, replica: _Replica, now: float) -> None:
        replica.advance(now)
        done = [picture for picture in replica.in_progress if picture.left <= 1e-9]
        replica.in_progress = [picture for picture in replica.in_progress if picture.left > 1e-9]
        self._schedule(replica)
        for picture in done:
            self._deliver(picture, now)
        self._fill(replica.stage, now)

    def _deliver(self, picture: _Picture, now: float) -> None:
        run, stage = picture.run, picture.stage
        run.first_at = now if run.first_at is None else run.first_at
        run.missing[stage] -= 1
        if run.missing[stage]:
            return
        # The best of a stage go on when all of it is there: ranked, as by default.
        following = next((later for later in range(stage + 1, len(run.missing)) if run.missing[later]), None)
        if following is not None:
            self._enqueue(run, following, run.missing[following], now)
        elif run.arrived_at > self.end * WARM_UP_SHARE:
            self.finished.append(run)
            self.whole_s.append(now - run.arrived_at)

    def _evict(self, replica: _Replica, now: float) -> None:
        replica.is_up = False
        lost, replica.in_progress = replica.in_progress, []
        self._schedule(replica)
        self.num_repeated += len(lost)
        # To the front: they have waited already.
        self.queues[replica.stage].extendleft(_Picture(picture.run, picture.stage) for picture in lost)
        self._later(now + self.eviction.replacement_s, "replaced", replica)
        self._fill(replica.stage, now)


def simulate(
    stages: Sequence[StageModel],
    load: Load,
    eviction: Eviction = Eviction(),
    *,
    hours: float = 8.0,
    seed: int = 0,
) -> Outcome:
    """Runs the model. Raises ValueError when no run could finish in the simulated time."""
    simulation = _Simulation(stages, load, eviction, hours, seed)
    simulation.run()
    if not simulation.finished:
        raise ValueError("no run finished in the simulated time: simulate more hours, or add replicas")
    measured_s = simulation.end * (1 - WARM_UP_SHARE)
    first_s = [run.first_at - run.arrived_at for run in simulation.finished if run.first_at is not None]
    price = sum(stage.replicas * stage.price_per_hour for stage in stages)
    num_pictures = len(simulation.finished) * sum(load.pictures)
    up_share = 1 / (1 + eviction.per_hour / HOUR_S * eviction.replacement_s)
    return Outcome(
        num_runs=len(simulation.finished),
        first_picture_s=_percentiles(first_s),
        whole_run_s=_percentiles(simulation.whole_s),
        utilisation={
            name: busy / (measured_s * stage.replicas * stage.slots)
            for name, busy, stage in zip(STAGES, simulation.busy_s, stages, strict=True)
        },
        waiting={
            name: waiting / measured_s for name, waiting in zip(STAGES, simulation.waiting_s, strict=True)
        },
        num_repeated=simulation.num_repeated,
        cost_per_1000=1000 * price * measured_s / HOUR_S / num_pictures,
        is_stable=all(
            load.runs_per_s * count < stage.max_rate * up_share
            for stage, count in zip(stages, load.pictures, strict=True)
        ),
    )


def scale_next(
    stages: Sequence[StageModel], load: Load, eviction: Eviction, *, hours: float, seed: int
) -> dict[str, Outcome]:
    """What one more replica of each stage would give, by stage: with the same arrivals and evictions' seed."""
    outcomes = {}
    for index, name in enumerate(STAGES):
        if load.pictures[index]:
            more = list(stages)
            more[index] = replace(more[index], replicas=more[index].replicas + 1)
            outcomes[name] = simulate(more, load, eviction, hours=hours, seed=seed)
    return outcomes


def fewest_replicas(
    stages: Sequence[StageModel], load: Load, *, max_utilisation: float = 0.7
) -> list[StageModel]:
    """As many replicas of each stage as keep its slots free enough for waits to stay short."""
    return [
        replace(
            stage,
            replicas=max(
                1,
                -int(
                    -load.runs_per_s * count // (stage.slots / stage.seconds(stage.slots) * max_utilisation)
                ),
            ),
        )
        for stage, count in zip(stages, load.pictures, strict=True)
    ]


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
