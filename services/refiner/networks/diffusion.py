"""The noise schedule, and the sampler that turns noise predictions into latents: PRK, then PLMS.

A sampler is a value: `point` and `timestep` say where the network must be asked next, `advance` takes its
answer and gives the next value. One latent each, so that latents at different timesteps can share a
forward. Liu et al. 2022, "Pseudo Numerical Methods for Diffusion
Models on Manifolds", as GLID-3-xl runs it. Dimension key: N latents, Z channels, H W latent pixels.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012  # latent diffusion's "linear" schedule: linear in the square root
NUM_PRK_STEPS = 3
CALLS_PER_PRK_STEP = 4
# Fewer would leave the Runge-Kutta steps to reach below index 0, where the reference gives NaN.
MIN_STEPS = NUM_PRK_STEPS + 1


@dataclass(frozen=True)
class Schedule:
    """The respaced steps, from the least noise (index 0) to the most; the networks know `timesteps`."""

    timesteps: tuple[int, ...]
    alphas_cumprod: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def timestep(self, index: int | float) -> float:
        """At half an index, the mean of both neighbours."""
        return _interpolate(self.timesteps, index)

    def alpha_cumprod(self, index: int | float) -> float:
        return _interpolate(self.alphas_cumprod, index)


@cache
def make_schedule(num_steps: int) -> Schedule:
    """Spreads `num_steps` (2..1000) over the training timesteps; 0 and 999 are always among them."""
    if not 2 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"num_steps: expected 2..{NUM_TRAIN_TIMESTEPS}, got {num_steps}")
    stride = (NUM_TRAIN_TIMESTEPS - 1) / (num_steps - 1)
    timesteps, position = [], 0.0
    for _ in range(num_steps):
        timesteps.append(round(position))
        position += stride  # added up, not multiplied: the rounding is the reference's
    alphas_cumprod = train_alphas_cumprod()
    return Schedule(tuple(timesteps), tuple(float(alphas_cumprod[t]) for t in timesteps))


@cache
def train_alphas_cumprod() -> Float[np.ndarray, " 1000"]:
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


def add_noise(
    latents: Float[Tensor, "..."], noise: Float[Tensor, "..."], alpha_cumprod: float
) -> Float[Tensor, "..."]:
    return math.sqrt(alpha_cumprod) * latents + math.sqrt(1 - alpha_cumprod) * noise


def guide(
    cond: Float[Tensor, "N Z H W"],
    uncond: Float[Tensor, "N Z H W"],
    guidance_scale: Float[Tensor, " N"],
    guided_channels: int,
) -> Float[Tensor, "N Z H W"]:
    """Classifier-free guidance of the first channels; the others stay conditional.

    GLID-3-xl guides 3 of 4, inherited from models that drew RGB: it is what its pictures are made with.
    """
    guided = cond.clone()
    here = slice(None, guided_channels)
    scale = guidance_scale[:, None, None, None]
    guided[:, here] = uncond[:, here] + scale * (cond[:, here] - uncond[:, here])
    return guided


@dataclass(frozen=True)
class Sampler:
    """One latent on its way down the schedule.

    `call` counts the answers already taken at this index: a PRK step needs four, a PLMS step one.
    """

    schedule: Schedule
    index: int
    x: Float[Tensor, "Z H W"]
    point: Float[Tensor, "Z H W"]
    # The best guess of the finished latent so far.
    pred_xstart: Float[Tensor, "Z H W"]
    call: int = 0
    eps_sum: Float[Tensor, "Z H W"] | None = None
    old_eps: tuple[Float[Tensor, "Z H W"], ...] = ()

    @property
    def timestep(self) -> float:
        """What to tell the network about `point`."""
        return self.schedule.timestep(self._index_of_point)

    @property
    def is_finished(self) -> bool:
        return self.index < 0

    def advance(self, eps: Float[Tensor, "Z H W"]) -> "Sampler":
        """Takes the noise that the network saw in `point`."""
        if len(self.old_eps) < NUM_PRK_STEPS:
            return self._advance_prk(eps)
        first, second, third = self.old_eps[::-1]
        eps_prime = (55 * eps - 59 * first + 37 * second - 9 * third) / 24
        return self._step_down(eps_prime, remember=eps, pred_xstart=self._pred_xstart(eps))

    @property
    def _index_of_point(self) -> float:
        return self.index - (0.0, 0.5, 0.5, 1.0)[self.call]

    def _advance_prk(self, eps: Float[Tensor, "Z H W"]) -> "Sampler":
        if self.eps_sum is None:
            point, eps_sum = self._transfer(eps, self.index - 0.5), eps
            return replace(self, call=1, point=point, eps_sum=eps_sum, pred_xstart=self._pred_xstart(eps))
        if self.call == 1:
            point, eps_sum = self._transfer(eps, self.index - 0.5), self.eps_sum + 2 * eps
            return replace(self, call=2, point=point, eps_sum=eps_sum)
        if self.call == 2:
            point, eps_sum = self._transfer(eps, self.index - 1), self.eps_sum + 2 * eps
            return replace(self, call=3, point=point, eps_sum=eps_sum)
        eps_prime = (self.eps_sum + eps) / 6
        return self._step_down(eps_prime, remember=eps_prime, pred_xstart=self._pred_xstart(eps_prime))

    def _step_down(
        self,
        eps: Float[Tensor, "Z H W"],
        *,
        remember: Float[Tensor, "Z H W"],
        pred_xstart: Float[Tensor, "Z H W"],
    ) -> "Sampler":
        x = self._transfer(eps, self.index - 1) if self.index > 0 else pred_xstart
        return Sampler(
            schedule=self.schedule,
            index=self.index - 1,
            x=x,
            point=x,
            pred_xstart=pred_xstart,
            old_eps=(*self.old_eps, remember)[-NUM_PRK_STEPS:],
        )

    def _transfer(self, eps: Float[Tensor, "Z H W"], index: int | float) -> Float[Tensor, "Z H W"]:
        """Moves `x` along the noise `eps` to the noise level of `index`."""
        return add_noise(self._pred_xstart(eps), eps, self.schedule.alpha_cumprod(index))

    def _pred_xstart(self, eps: Float[Tensor, "Z H W"]) -> Float[Tensor, "Z H W"]:
        alpha_cumprod = self.schedule.alpha_cumprod(self.index)
        return (self.x - math.sqrt(1 - alpha_cumprod) * eps) / math.sqrt(alpha_cumprod)


class SamplerWeights(NamedTuple):
    """What one call of the network means for one latent: numbers, as `advance_rows` takes them."""

    timestep: float
    sqrt_alpha: float
    sqrt_one_minus_alpha: float
    # Of the noise level that `point` moves to; unused in the last step, which ends at the prediction.
    sqrt_next_alpha: float
    sqrt_one_minus_next_alpha: float
    # 1 or 0: the first of a Runge-Kutta step's calls, the last, a PLMS step; either of the latter moves `x`.
    is_first_call: float
    is_last_call: float
    is_plms: float
    is_last_step: float


@dataclass(frozen=True)
class SamplerPlace:
    """Where a latent is in its schedule: a Sampler without its tensors."""

    schedule: Schedule
    index: int
    call: int = 0
    num_steps_done: int = 0

    @property
    def is_plms(self) -> bool:
        return self.num_steps_done >= NUM_PRK_STEPS

    @property
    def index_of_point(self) -> float:
        """Of the noise level at which the network is asked."""
        return self.index - (0.0, 0.5, 0.5, 1.0)[self.call]

    @property
    def weights(self) -> SamplerWeights:
        """Of the call that comes next."""
        moves_x = self.is_plms or self.call == CALLS_PER_PRK_STEP - 1
        is_last_step = moves_x and self.index == 0
        to = self.index - (1 if moves_x or self.call == 2 else 0.5)
        alpha = self.schedule.alpha_cumprod(self.index)
        next_alpha = 1.0 if is_last_step else self.schedule.alpha_cumprod(to)
        return SamplerWeights(
            self.schedule.timestep(self.index_of_point),
            math.sqrt(alpha),
            math.sqrt(1 - alpha),
            math.sqrt(next_alpha),
            math.sqrt(1 - next_alpha),
            float(not self.is_plms and self.call == 0),
            float(moves_x and not self.is_plms),
            float(self.is_plms),
            float(is_last_step),
        )

    def advance(self) -> "SamplerPlace":
        """The place after one more answer of the network."""
        if not self.is_plms and self.call < CALLS_PER_PRK_STEP - 1:
            return replace(self, call=self.call + 1)
        return SamplerPlace(self.schedule, self.index - 1, 0, self.num_steps_done + 1)


class SamplerRows(NamedTuple):
    """The tensors of many samplers, one row each. `old_eps` has the newest first."""

    x: Float[Tensor, "N Z H W"]
    point: Float[Tensor, "N Z H W"]
    pred_xstart: Float[Tensor, "N Z H W"]
    eps_sum: Float[Tensor, "N Z H W"]
    old_eps: Float[Tensor, "N 3 Z H W"]


def advance_rows(
    rows: SamplerRows, eps: Float[Tensor, "N Z H W"], weights: Float[Tensor, "N numbers"]
) -> SamplerRows:
    """What `Sampler.advance` does, for many latents at once, each at its own place.

    `weights` are the rows' SamplerWeights. The same operations in the same order give the same bits on a CPU.
    """
    _, a, b, next_a, next_b, is_first, is_last, is_plms, ends = (
        column[:, None, None, None] for column in weights.unbind(1)
    )
    first, second, third = rows.old_eps.unbind(1)
    plms = (55 * eps - 59 * first + 37 * second - 9 * third) / 24
    mean = (rows.eps_sum + eps) / 6
    used = torch.where(is_plms > 0, plms, torch.where(is_last > 0, mean, eps))
    # The prediction that is shown follows the last answer alone.
    shown = torch.where(is_plms > 0, eps, used)
    pred_xstart = (rows.x - b * shown) / a
    moved = next_a * ((rows.x - b * used) / a) + next_b * used
    moved = torch.where(ends > 0, pred_xstart, moved)
    moves_x = is_plms + is_last > 0
    remembered = torch.stack([shown, first, second], dim=1)
    return SamplerRows(
        x=torch.where(moves_x, moved, rows.x),
        point=moved,
        pred_xstart=torch.where(moves_x | (is_first > 0), pred_xstart, rows.pred_xstart),
        eps_sum=torch.where(is_first > 0, eps, rows.eps_sum + 2 * eps),
        old_eps=torch.where(moves_x[:, None], remembered, rows.old_eps),
    )


def start_sampler(
    schedule: Schedule,
    noise: Float[Tensor, "Z H W"],
    init: Float[Tensor, "Z H W"] | None = None,
    num_skipped: int = 0,
) -> Sampler:
    """From pure noise, or from `init` with the noise of the first step that is not skipped.

    Raises ValueError if fewer than MIN_STEPS are left.
    """
    if schedule.num_steps - num_skipped < MIN_STEPS:
        raise ValueError(
            f"expected at least {MIN_STEPS} steps after skipping, got {schedule.num_steps} - {num_skipped}"
        )
    index = schedule.num_steps - num_skipped - 1
    x = noise if init is None else add_noise(init, noise, schedule.alphas_cumprod[index])
    return Sampler(schedule, index, x, x, pred_xstart=x)


def _interpolate(values: tuple[int, ...] | tuple[float, ...], index: int | float) -> float:
    below = math.floor(index)
    if below == index:
        return float(values[below])
    return values[below] + (index - below) * (values[below + 1] - values[below])
