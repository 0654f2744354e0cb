"""The batch on the device: one sequence per lane, each at its own position and with its own settings.

A lane has two rows, with the prompt and without. The number of lanes and the cache's length come in a few sizes, each
with a compiled program; a batch is laid out anew when its size changes or a picture joins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt32

from services.generator.dalle.networks import dalle, sampling
from services.generator.dalle.networks.dalle_parameters import DalleConfig, Params

# B lanes, V image tokens.


@dataclass(frozen=True)
class GenerateJob:
    """One picture to make; see SamplingDefaults for what switches top_k and top_p off."""

    prompt: str
    seed: int
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float


@dataclass
class TokenSequence:
    """A job under way. `num_cached` of its positions are in the batch's cache; 0 again if that was lost."""

    job: GenerateJob
    prompt: dalle.EncodedPrompt
    image_tokens: list[int] = field(default_factory=list)
    num_cached: int = 0

    @property
    def num_text_tokens(self) -> int:
        """Up to the last that is no padding."""
        return int(np.flatnonzero(np.asarray(self.prompt.text_mask)[0]).max(initial=0)) + 1


class Settings(NamedTuple):
    """The jobs' settings, one entry a lane: arrays, so that no value of theirs is compiled in."""

    seeds: UInt32[Array, "B 2"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    guidance_scale: Float[Array, " B"]


@dataclass
class Batch:
    """What lies on the device; a lane without a slot is computed and not used."""

    slots: list[int | None]
    length: int
    cache: dalle.Cache
    prompt: dalle.EncodedPrompt
    settings: Settings


def next_tokens(
    params: Params,
    config: DalleConfig,
    batch: Batch,
    uncond_prompt: dalle.EncodedPrompt,
    image_tokens: Int[np.ndarray, " B"],
    positions: Int[np.ndarray, " B"],
) -> Int[np.ndarray, " B"]:
    """Reads each lane's token at its position and draws the lane's next one; has finished when it returns."""
    guided, batch.cache = read_tokens(
        params,
        config,
        batch.cache,
        jnp.asarray(image_tokens),
        jnp.asarray(positions),
        batch.prompt,
        uncond_prompt,
        batch.settings.guidance_scale,
    )
    return np.asarray(draw_tokens(guided, jnp.asarray(positions), batch.settings))


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def read_tokens(
    params: Params,
    config: DalleConfig,
    cache: dalle.Cache,
    image_tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    prompt: dalle.EncodedPrompt,
    uncond_prompt: dalle.EncodedPrompt,
    guidance_scale: Float[Array, " B"],
) -> tuple[Float[Array, "B V"], dalle.Cache]:
    """One pass through the network with the prompt and without; the cache that is passed in is used up."""
    logits, cache = dalle.decode_step(
        params, config, cache, jnp.tile(image_tokens, 2), jnp.tile(positions, 2), [prompt, uncond_prompt]
    )
    cond_logits, uncond_logits = jnp.split(logits, 2)
    return sampling.guide(cond_logits, uncond_logits, guidance_scale), cache


# A program of its own, since it does not depend on the cache's length: fewer seconds of compilation at each start.
@jax.jit
def draw_tokens(
    guided: Float[Array, "B V"], positions: Int[Array, " B"], settings: Settings
) -> Int[Array, " B"]:
    """Filters and draws; a lane's draw depends on its own logits, settings and position alone."""
    filtered = sampling.filter_logits(guided, settings.temperature, settings.top_k, settings.top_p)
    return sampling.draw(filtered, settings.seeds, positions)


def build_batch(
    config: DalleConfig,
    members: Sequence[tuple[int | None, TokenSequence]],
    length: int,
    text_length: int,
    old: Batch | None,
) -> Batch:
    """Gives each member, a slot and its sketch, a lane, with what the old batch's cache holds of it.

    `text_length` is how much of the prompts is kept: all that is no padding, at least.

    Works in the host's memory: it happens once in many steps, and on the device every change of size would be a
    program of its own to compile.
    """
    moves = []  # new row, old row, how many positions
    for lane, (slot, sequence) in enumerate(members):
        if slot is not None and old is not None and slot in old.slots:
            old_lane = old.slots.index(slot)
            moves.append((lane, old_lane, sequence.num_cached))
            moves.append((len(members) + lane, len(old.slots) + old_lane, sequence.num_cached))

    heads = config.decoder_attention_heads
    shape = (2 * len(members), heads, length, config.d_model // heads)

    def copy_rows(layer: Array | None) -> Array:
        array = np.zeros(shape, np.float32)
        if layer is not None:
            source = np.asarray(layer)
            for row, old_row, num_cached in moves:
                array[row, :, :num_cached] = source[old_row, :, :num_cached]
        return jnp.asarray(array)

    nothing = [None] * config.decoder_layers
    cache = dalle.Cache(
        [copy_rows(layer) for layer in (old.cache.k if old else nothing)],
        [copy_rows(layer) for layer in (old.cache.v if old else nothing)],
    )
    prompts = [
        dalle.truncate_prompt(jax.tree.map(np.asarray, sequence.prompt), text_length)
        for _, sequence in members
    ]
    prompt: dalle.EncodedPrompt = jax.tree.map(lambda *rows: jnp.asarray(np.concatenate(rows)), *prompts)
    return Batch([slot for slot, _ in members], length, cache, prompt, _settings([s.job for _, s in members]))


def _settings(jobs: Sequence[GenerateJob]) -> Settings:
    return Settings(
        jnp.asarray([sampling.seed_halves(job.seed) for job in jobs], jnp.uint32),
        jnp.asarray([job.temperature for job in jobs], jnp.float32),
        jnp.asarray([job.top_k for job in jobs], jnp.int32),
        jnp.asarray([job.top_p for job in jobs], jnp.float32),
        jnp.asarray([job.guidance_scale for job in jobs], jnp.float32),
    )
