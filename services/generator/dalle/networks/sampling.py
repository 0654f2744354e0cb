"""Choosing the next image token: guidance, temperature, top-k, top-p, and a draw that depends on the seed alone.

Every setting is an array with one entry a row, so rows of different requests share a step and no value recompiles it.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt32

from services.errors import ModelError

# B rows, V image tokens.


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets that sets nothing; a model's config.json may say better in an object `sampling`.

    The published models sample best with strong guidance. Their own code falls back to top_k 50 without saying so;
    here 0, and top_p 1, mean what they say: off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 10.0

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "SamplingDefaults":
        """Reads the object `sampling` of a config.json, if there is one; raises ModelError."""
        found = raw.get("sampling", {})
        defaults = asdict(cls())
        if not isinstance(found, dict) or not found.keys() <= defaults.keys():
            raise ModelError(
                f"config.json: sampling: expected an object of {', '.join(defaults)}, got {found!r}"
            )
        for name, value in found.items():
            kinds = (int,) if name == "top_k" else (int, float)
            if type(value) not in kinds or value < 0:
                raise ModelError(f"config.json: sampling.{name}: expected a number from 0 on, got {value!r}")
        return cls(**{name: type(default)(found.get(name, default)) for name, default in defaults.items()})


def guide(
    logits: Float[Array, "*B V"], uncond_logits: Float[Array, "*B V"], guidance_scale: Float[Array, "*B"]
) -> Float[Array, "*B V"]:
    """Classifier-free guidance: 1 follows the prompt as trained, more follows it harder, 0 not at all."""
    return uncond_logits + guidance_scale[..., None] * (logits - uncond_logits)


def filter_logits(
    logits: Float[Array, "B V"],
    temperature: Float[Array, " B"],
    top_k: Int[Array, " B"],
    top_p: Float[Array, " B"],
) -> Float[Array, "B V"]:
    """Scales by the temperature, then removes (-inf) all but the top k, then all but the top p of what is left.

    top_k 0 and top_p 1 remove nothing. top_p keeps the token that crosses the threshold, so never fewer than one.
    The temperature must be above 0. Of equal logits the first ones stay, as in the reference.
    """
    vocabulary = logits.shape[-1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, vocabulary), vocabulary)
    scaled = logits / temperature[:, None]

    def keep_top_k(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        return _keep_most(logits, lambda kept: kept.sum(-1) >= k)

    def keep_top_p(logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
        probabilities = jax.nn.softmax(logits, axis=-1)
        # Above 0, so that one token stays; 2 is never reached, so that all do.
        target = jnp.where(top_p < 1, jnp.maximum(top_p, 1e-9), 2)
        return _keep_most(logits, lambda kept: jnp.where(kept, probabilities, 0).sum(-1) >= target)

    # The branches are taken at run time: nobody pays for a filter that no row uses.
    scaled = lax.cond(jnp.any(k < vocabulary), keep_top_k, lambda same: same, scaled)
    return lax.cond(jnp.any(top_p < 1), keep_top_p, lambda same: same, scaled)


def draw(
    logits: Float[Array, "B V"], seeds: UInt32[Array, "B 2"], positions: Int[Array, " B"]
) -> Int[Array, " B"]:
    """Draws one token a row; row i's draw depends on its logits, its seed's halves and its position alone."""

    def noise(seed: UInt32[Array, "2"], position: Int[Array, ""]) -> Float[Array, " V"]:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.gumbel(key, logits.shape[1:])

    # The largest of logits plus Gumbel noise is a draw from their softmax.
    return (logits + jax.vmap(noise)(seeds, positions)).argmax(-1)


def seed_halves(seed: int) -> tuple[int, int]:
    """The upper and lower 32 bits of a uint64 seed: what a threefry key is made of."""
    return seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF


def _keep_most(
    logits: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]]
) -> Float[Array, "B V"]:
    """Removes as many of the smallest logits of each row as `enough` allows; of equal ones, the last go first.

    Bisects, which is many times faster than sorting. The bits of a float, with those of negative ones flipped, are
    ordered as the floats are: the smallest float to keep is found bit by bit, then the last place that may hold it.
    """
    bits = lax.bitcast_convert_type(logits, jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    places = jnp.uint32(logits.shape[-1]) - jnp.arange(logits.shape[-1], dtype=jnp.uint32)

    def largest(
        num_bits: int, kept_from: Callable[[UInt32[Array, "B 1"]], Bool[Array, "B V"]]
    ) -> UInt32[Array, "B 1"]:
        def add_bit(i: Int[Array, ""], edge: UInt32[Array, "B 1"]) -> UInt32[Array, "B 1"]:
            higher = edge | jnp.uint32(1 << (num_bits - 1)) >> i.astype(jnp.uint32)
            return jnp.where(enough(kept_from(higher))[:, None], higher, edge)

        return lax.fori_loop(0, num_bits, add_bit, jnp.zeros((len(logits), 1), jnp.uint32))

    edge = largest(32, lambda edge: order >= edge)
    above, at = order > edge, order == edge
    last = largest(logits.shape[-1].bit_length(), lambda last: above | (at & (places >= last)))
    return jnp.where(above | (at & (places >= last)), logits, -jnp.inf)
