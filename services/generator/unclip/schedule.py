"""Respaced DDPM steps of the prior, the decoder and super-resolution, one row at its own timestep.

The tables are float32, in the order of operations of the implementation that the published settings were tuned with:
there 1 - abar_t / abar_p is exactly 1 from the first timestep.
Dimension key: B rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
MAX_BETA = 0.999
# From 2: the spacing divides by one less than the number of steps.
MIN_STEPS = 2


@dataclass(frozen=True)
class DiffusionConfig:
    """How one of the networks denoises, and the default number of steps. Defaults: Karlo's prior."""

    num_steps: int = 25
    guidance_scale: float = 4.0
    predicts: Literal["sample", "epsilon"] = "sample"
    variance: Literal["fixed_small", "learned_range"] = "fixed_small"
    # Predictions are cut to +- this. The prior's is 5 in the hub's scheduler, 10 in the original code.
    # None: not cut.
    clip_range: float | None = 5.0
    # Timesteps are 0 to one less; also the most steps that a picture can take.
    num_train_timesteps: int = NUM_TRAIN_TIMESTEPS


@dataclass(frozen=True)
class StepWeights:
    """What a step from one timestep to the next takes of everything, in float32."""

    timestep: int
    sqrt_abar: float
    sqrt_one_minus_abar: float
    x0_weight: float
    x_weight: float
    log_beta: float
    log_small: float  # of the variance without learning
    is_last: bool


@cache
def step_weights(num_steps: int, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> tuple[StepWeights, ...]:
    """Of every step of a schedule of `num_steps`, first to last.

    Raises ValueError for fewer than 2 or more than `num_train_timesteps`.
    """
    steps = timesteps(num_steps, num_train_timesteps)
    tables = _tables(num_train_timesteps)
    return tuple(
        _step_weights(t, previous, *tables) for t, previous in zip(steps, [*steps[1:], -1], strict=True)
    )


def timesteps(num_steps: int, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS) -> list[int]:
    """Evenly spaced from the last to 0, halves rounded to even."""
    if not MIN_STEPS <= num_steps <= num_train_timesteps:
        raise ValueError(f"expected {MIN_STEPS} to {num_train_timesteps} steps, got {num_steps}")
    spaced = np.arange(num_steps) * ((num_train_timesteps - 1) / (num_steps - 1))
    return [int(t) for t in np.round(spaced)[::-1]]


def advance(
    x: Float[Tensor, "B ..."],
    output: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    weights: Sequence[StepWeights],
    config: DiffusionConfig,
) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
    """The x of the next timesteps, and the predictions of x without noise.

    `output` is the network's, guided already; with a learned range it has as many channels more. The last step of a
    row takes no noise.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=x.device).view(-1, *[1] * (x.ndim - 1))

    log_variance = column([w.log_small for w in weights])
    if config.variance == "learned_range":
        output, learned = output.chunk(2, dim=1)
        share = (learned + 1) / 2
        log_variance = share * column([w.log_beta for w in weights]) + (1 - share) * log_variance
    if config.predicts == "epsilon":
        output = (x - column([w.sqrt_one_minus_abar for w in weights]) * output) / column(
            [w.sqrt_abar for w in weights]
        )
    x0 = output if config.clip_range is None else output.clamp(-config.clip_range, config.clip_range)
    mean = column([w.x0_weight for w in weights]) * x0 + column([w.x_weight for w in weights]) * x
    spread = torch.exp(0.5 * log_variance) * column([0.0 if w.is_last else 1.0 for w in weights])
    return mean + spread * noise, x0


def alphas_cumprod() -> NDArray[np.float32]:
    """abar_t of every timestep, for training."""
    return _tables(NUM_TRAIN_TIMESTEPS)[1]


@cache
def _tables(num_train_timesteps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Betas of the squared cosine, and the products of 1 - beta."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = num_train_timesteps
    betas = np.array([min(1 - f((t + 1) / n) / f(t / n), MAX_BETA) for t in range(n)], np.float32)
    return betas, np.cumprod(np.float32(1) - betas, dtype=np.float32)


def _step_weights(
    t: int, previous: int, betas: NDArray[np.float32], abars: NDArray[np.float32]
) -> StepWeights:
    one, half = np.float32(1), np.float32(0.5)
    abar, abar_previous = abars[t], abars[previous] if previous >= 0 else one
    beta = betas[t] if previous == t - 1 else one - abar / abar_previous
    small = (one - abar_previous) / (one - abar) * beta
    return StepWeights(
        timestep=t,
        sqrt_abar=float(abar**half),
        sqrt_one_minus_abar=float((one - abar) ** half),
        x0_weight=float(abar_previous**half * beta / (one - abar)),
        x_weight=float((one - beta) ** half * (one - abar_previous) / (one - abar)),
        log_beta=float(np.log(beta)),
        # At the last step it is 0, and a log of it none: no noise is added there.
        log_small=float(np.log(max(small, np.float32(1e-20)))),
        is_last=t == 0,
    )
