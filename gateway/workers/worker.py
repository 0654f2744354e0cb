"""A worker as the gateway sees it: its model, its work in progress, and its failures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from services.queues import QueueRate
from services.serving.tls import Certificates
from triptych.v1.stage_pb2 import ModelInfo

# What a worker is given at once, in batches: the one that it makes, and the next, so that it never stands idle.
BATCHES_AT_WORKER = 2


@dataclass(eq=False)
class Worker:
    """A process that serves the stage. `problem` is empty while it can be given work."""

    address: str
    channel: grpc.aio.Channel
    problem: str = "not asked yet"
    model: ModelInfo = field(default_factory=ModelInfo)
    # Images that this gateway has asked of it and that are not done.
    outstanding: int = 0
    # Of those that waited for it to have room, those whose turn has come and that have not begun.
    promised: int = 0
    # No longer at its name: gets nothing new and is closed when it has no work left.
    gone: bool = False
    # What the channel was opened with.
    certificates: Certificates | None = None
    # When it last said anything of a picture, and when it may be given work again, on the pool's clock.
    heard_at: float = -math.inf
    paused_until: float = -math.inf
    # How often it was lost or stalled, and answered what cannot be right, since its last picture.
    num_losses: int = 0
    # A single loss may be a restart; after another, or a stall, it gets one picture until that has come.
    is_on_probation: bool = False
    num_broken_answers: int = 0
    # For one picture that is to be alone there: it gets nothing else until that is done.
    is_reserved: bool = False
    # Of its queue, as far as this gateway has seen it move.
    queue_rate: QueueRate = field(default_factory=QueueRate)
    # Called when it stalls, by those who wait in its queue.
    on_stall: set[Callable[[], None]] = field(default_factory=set)

    @property
    def has_room(self) -> bool:
        """Whether it may be given one more picture: on probation it has to show first that it can make one."""
        return not self.is_reserved and not (self.is_on_probation and self.outstanding)

    @property
    def load(self) -> int:
        return self.outstanding + self.promised

    @property
    def is_full(self) -> bool:
        """Whether it has what it makes at once and as many more for when those are done: what waits elsewhere can still
        go to whichever worker is free first. One that does not say what it makes at once is never full."""
        num_slots = self.model.limits.num_slots
        return num_slots > 0 and self.load >= BATCHES_AT_WORKER * num_slots

    def take_over(self, other: "Worker") -> None:
        """What is known of the worker, whose channel this one replaces."""
        self.problem, self.model, self.paused_until = other.problem, other.model, other.paused_until
        self.num_losses, self.num_broken_answers = other.num_losses, other.num_broken_answers
        self.is_on_probation = other.is_on_probation
        self.queue_rate = other.queue_rate
