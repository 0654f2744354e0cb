"""What all runs of one gateway share."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.runs.admission import Admission
from gateway.runs.memory_budget import WeightedSemaphore
from gateway.workers.pool import Pool
from gateway.workers.retry_policy import RetryPolicy


@dataclass(frozen=True)
class RunContext:
    # By the stage's name.
    pools: Mapping[str, Pool]
    retry_policy: RetryPolicy
    # Decides which runs begin.
    admission: Admission
    # In bytes. An image that waits for its turn here is in the store alone.
    memory: WeightedSemaphore
