"""The batch on the device: one sequence per lane, each at its own position and with its own settings.

A lane has two rows, with the prompt and without. The number of lanes and the cache's length come in a few sizes, each
with a compiled program; a batch is laid out anew when its size changes or a picture joins. All of it stays on the device: what
passes through the host are tokens, positions and settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, UInt32

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
    # As in `prompt`, but in the host's memory.
    text_mask: Bool[np.ndarray, " T"]
    image_tokens: list[int] = field(default_factory=list)
    num_cached: int = 0

    @property
    def num_text_tokens(self) -> int:
        """Up to the last that is no padding."""
        return int(np.flatnonzero(self.text_mask).max(initial=0)) + 1


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


def draw_next(
    params: Params,
    config: DalleConfig,
    batch: Batch,
    uncond_prompt: dalle.EncodedPrompt,
    image_tokens: Int[np.ndarray, " B"],
    positions: Int[np.ndarray, " B"],
) -> Int[np.ndarray, "1 B"]:
    """Reads each lane's token at its position and draws the lane's next one; has finished when it returns."""
    tokens, places = jax.device_put((image_tokens, positions))
    guided, batch.cache = read_tokens(
        params,
        config,
        batch.cache,
        tokens,
        places,
        batch.prompt,
        uncond_prompt,
        batch.settings.guidance_scale,
    )
    return np.asarray(jax.device_get(draw_tokens(guided, places, batch.settings)))[None]


def draw_several(
    params: Params,
    config: DalleConfig,
    batch: Batch,
    uncond_prompt: dalle.EncodedPrompt,
    image_tokens: Int[np.ndarray, " B"],
    positions: Int[np.ndarray, " B"],
    is_stepped: Bool[np.ndarray, " B"],
    *,
    count: int,
    most: int,
) -> Int[np.ndarray, "N B"]:
    """The next `count` tokens of each lane that is stepped, in one dispatch; the others stay at their position.

    One program serves every count up to `most`. The cache must have room for `count` positions more.
    """
    arguments = jax.device_put((image_tokens, positions, is_stepped, np.int32(count)))
    drawn, batch.cache = _loop(
        params, config, batch.cache, *arguments, batch.prompt, uncond_prompt, batch.settings, most
    )
    return np.asarray(jax.device_get(drawn))[:count]


def _read(
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


def _draw(guided: Float[Array, "B V"], positions: Int[Array, " B"], settings: Settings) -> Int[Array, " B"]:
    """Filters and draws; a lane's draw depends on its own logits, settings and position alone."""
    filtered = sampling.filter_logits(guided, settings.temperature, settings.top_k, settings.top_p)
    return sampling.draw(filtered, settings.seeds, positions)


read_tokens = jax.jit(_read, static_argnames="config", donate_argnames="cache")
# A program of its own, since it does not depend on the cache's length: fewer seconds of compilation at each start.
draw_tokens = jax.jit(_draw)


@partial(jax.jit, static_argnames=("config", "most"), donate_argnames="cache")
def _loop(
    params: Params,
    config: DalleConfig,
    cache: dalle.Cache,
    image_tokens: Int[Array, " B"],
    positions: Int[Array, " B"],
    is_stepped: Bool[Array, " B"],
    count: Int[Array, ""],
    prompt: dalle.EncodedPrompt,
    uncond_prompt: dalle.EncodedPrompt,
    settings: Settings,
    most: int,
) -> tuple[Int[Array, "{most} B"], dalle.Cache]:
    State = tuple[dalle.Cache, Array, Array, Array]

    def step(i: Array, state: State) -> State:
        cache, tokens, places, drawn = state
        guided, cache = _read(
            params, config, cache, tokens, places, prompt, uncond_prompt, settings.guidance_scale
        )
        following = _draw(guided, places, settings).astype(tokens.dtype)
        tokens = jnp.where(is_stepped, following, tokens)
        return cache, tokens, places + is_stepped, drawn.at[i].set(following)

    drawn = jnp.zeros((most, *image_tokens.shape), image_tokens.dtype)
    # Not a scan: with the number of rounds as a value, one program serves them all.
    cache, _, _, drawn = lax.fori_loop(0, count, step, (cache, image_tokens, positions, drawn))
    return drawn, cache


def build_batch(
    config: DalleConfig,
    members: Sequence[tuple[int | None, TokenSequence]],
    length: int,
    text_length: int,
    old: Batch | None,
    *,
    largest: tuple[int, int],
    dtype: DTypeLike = jnp.float32,
) -> Batch:
    """Gives each member, a slot and its sketch, a lane, with what the old batch's cache holds of it.

    `text_length` is how much of the prompts is kept: all that is no padding, at least. `largest` is the number of lanes
    and the length of the largest batch there can be.

    Nothing of the cache passes through the host. An array goes through the largest shape to its new one: so there are two
    small programs for each shape, and not one for each pair of shapes.
    """
    lanes = [slot for slot, _ in members]
    cache = _empty_cache(config, len(lanes), length, dtype)
    if old is not None and set(lanes) & set(old.slots) - {None}:
        cache = _move_rows(old, lanes, length, largest)
    sequences = [sequence for _, sequence in members]
    masks = np.stack([sequence.text_mask[:text_length] for sequence in sequences])
    rows = [sequence.prompt.memories for sequence in sequences]
    memories = [
        dalle.CrossAttentionKV(
            _join_rows([memory.k for memory in layer], text_length),
            _join_rows([memory.v for memory in layer], text_length),
        )
        for layer in zip(*rows, strict=True)
    ]
    prompt = dalle.EncodedPrompt(memories, jax.device_put(masks))
    return Batch(lanes, length, cache, prompt, _settings([sequence.job for sequence in sequences]))


def warm_up_moves(batch: Batch, largest: tuple[int, int]) -> None:
    """Compiles what a batch of this shape needs to become another one, and another one to become it."""
    wide = _widen(batch.cache.k[0], 2 * largest[0], largest[1])
    nothing = jax.device_put(np.full(2 * len(batch.slots), -1))
    _narrow(wide, nothing, batch.length)


def _move_rows(old: Batch, lanes: Sequence[int | None], length: int, largest: tuple[int, int]) -> dalle.Cache:
    """The old batch's cache in the new shape, with the rows of its slots in their new lanes and zeros elsewhere."""
    places = [old.slots.index(slot) if slot is not None and slot in old.slots else -1 for slot in lanes]
    # The rows without a prompt stand behind all rows with one.
    behind = [place if place < 0 else place + len(old.slots) for place in places]
    rows = jax.device_put(np.array(places + behind))

    def move(array: Array) -> Array:
        return _narrow(_widen(array, 2 * largest[0], largest[1]), rows, length)

    return dalle.Cache([move(array) for array in old.cache.k], [move(array) for array in old.cache.v])


def _empty_cache(config: DalleConfig, lanes: int, length: int, dtype: DTypeLike) -> dalle.Cache:
    heads = config.decoder_attention_heads
    shape = (2 * lanes, heads, length, config.d_model // heads)
    layers = range(config.decoder_layers)
    return dalle.Cache([_zeros(shape, dtype) for _ in layers], [_zeros(shape, dtype) for _ in layers])


@partial(jax.jit, static_argnames=("shape", "dtype"))
def _zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "R N S K"]:
    return jnp.zeros(shape, dtype)


@partial(jax.jit, static_argnames=("rows", "length"))
def _widen(array: Float[Array, "_ N _ K"], rows: int, length: int) -> Float[Array, "{rows} N {length} K"]:
    return jnp.pad(array, ((0, rows - array.shape[0]), (0, 0), (0, length - array.shape[2]), (0, 0)))


@partial(jax.jit, static_argnames="length")
def _narrow(
    wide: Float[Array, "_ N _ K"], rows: Int[Array, " R"], length: int
) -> Float[Array, "R N {length} K"]:
    """The rows of these numbers; zeros where the number is negative."""
    kept = wide[:, :, :length][jnp.maximum(rows, 0)]
    return jnp.where((rows >= 0)[:, None, None, None], kept, jnp.zeros((), wide.dtype))


@partial(jax.jit, static_argnames="length")
def _join_rows(rows: list[Float[Array, "1 N _ K"]], length: int) -> Float[Array, "B N {length} K"]:
    return jnp.concatenate([row[:, :, :length] for row in rows])


def _settings(jobs: Sequence[GenerateJob]) -> Settings:
    columns = (
        np.asarray([sampling.seed_halves(job.seed) for job in jobs], np.uint32),
        np.asarray([job.temperature for job in jobs], np.float32),
        np.asarray([job.top_k for job in jobs], np.int32),
        np.asarray([job.top_p for job in jobs], np.float32),
        np.asarray([job.guidance_scale for job in jobs], np.float32),
    )
    return Settings(*jax.device_put(columns))
