"""Many pictures at once, an image token of each at a time: the generator as steps.

The batch is no larger and no longer than the pictures that are under way need, so one picture costs little and a full
house is served together.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial

import jax
import numpy as np
from einops import rearrange
from jax import Array
from jaxtyping import Bool, Float, Int

from services.generator.dalle.batch import (
    Batch,
    GenerateJob as GenerateJob,
    TokenSequence,
    build_batch,
    draw_next,
    draw_several,
    warm_up_moves,
)
from services.generator.dalle.device import num_processors, oom_as_job_error
from services.generator.dalle.model import Model, decode_pixels
from services.generator.dalle.networks import dalle
from services.generator.dalle.networks.dalle_parameters import DalleConfig, Params
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.text.tokenizer import TextTokens
from services.images.codec import Picture
from services.images.latent_preview import NUM_SAMPLES, LatentPreview, random_blocks

# B prompts or pictures, T text tokens.

# A caller asks for many pictures of one prompt in a row; more than these few would only hold memory.
MAX_CACHED_PROMPTS = 8
# Pictures are decoded each by itself, at most these many at a time: each takes 130 MB meanwhile at 256 px.
PICTURES_DECODED_TOGETHER = 4
# Most prompts are shorter. In the largest batch, where it gains 6 %, they are cut to this; in smaller ones it gains less
# than the programs would cost to compile.
SHORT_TEXT_LENGTH = 24
# Below this, a cache is read so fast that shorter ones are not worth the seconds that their programs take to compile.
SMALL_CACHE_BYTES = 64 * 2**20
# An accelerator draws this many tokens in one dispatch while nobody joins or leaves: a cancelled picture frees its slot
# after at most so many.
TOKENS_PER_DISPATCH = 16


@dataclass(frozen=True)
class DecodedTokens:
    """The image tokens of a picture, and whether these are all."""

    image_tokens: list[int]
    is_finished: bool


class GeneratorStepper:
    """A Stepper with room for `num_slots` pictures."""

    def __init__(
        self,
        model: Model,
        *,
        num_slots: int = 8,
        short_text_length: int = SHORT_TEXT_LENGTH,
        tokens_per_dispatch: int | None = None,
    ) -> None:
        """`tokens_per_dispatch` is by default TOKENS_PER_DISPATCH on an accelerator, and 1 on a CPU.

        A dispatch costs a CPU nothing beside a step, and with 1 the programs are smaller.
        """
        self.num_slots = num_slots
        self._short_text_length = short_text_length
        self.model = model
        self._config = model.dalle_config
        on_cpu = jax.default_backend() == "cpu"
        self._tokens_per_dispatch = tokens_per_dispatch or (1 if on_cpu else TOKENS_PER_DISPATCH)
        self._lengths = _cache_lengths(self._config, num_slots, most_parts=4 if on_cpu else 2)
        self._sequences: dict[int, TokenSequence] = {}
        self._batch: Batch | None = None
        self._prompts: OrderedDict[bytes, dalle.EncodedPrompt] = OrderedDict()
        uncond = self._encode(model.tokenizer.uncond_tokens)
        # Its padding is never attended to: two tokens are all there is.
        self._uncond_prompt: dalle.EncodedPrompt = dalle.truncate_prompt(uncond, 2)

    def warm_up(self) -> None:
        """Compiles every program that serving can need: each number of lanes with each length."""
        self._decode([[0] * self._config.image_length])
        _ = self._glimpse
        sequence = self._new_sequence(GenerateJob("", 0, 1.0, 0, 1.0, 1.0))
        for lanes in _bucket_sizes(self.num_slots):
            for length in self._lengths:
                for text_length in self._text_lengths(lanes):
                    batch = self._build_batch([(None, sequence)] * lanes, length, text_length)
                    self._forward(batch, (), 1)
                    warm_up_moves(batch, self._largest)

    def admit(self, slot: int, job: GenerateJob) -> int:
        """Encodes the prompt; there are as many steps as image tokens."""
        with oom_as_job_error():
            self._sequences[slot] = self._new_sequence(job)
        return self._config.image_length

    def step(self, slots: Sequence[int]) -> None:
        """Draws one more token for each slot."""
        self.step_many(slots, 1)

    def step_many(self, slots: Sequence[int], limit: int) -> int:
        """Draws up to `limit` tokens more for each slot in one dispatch, and returns how many."""
        sequences = {slot: self._sequences[slot] for slot in slots}
        # A failed step took the cache with it: what was drawn is read again first.
        while behind := [slot for slot, one in sequences.items() if one.num_cached < len(one.image_tokens)]:
            self._advance(behind, 1)
            for slot in behind:
                sequences[slot].num_cached += 1
        batch, drawn = self._advance(slots, min(limit, self._tokens_per_dispatch))
        for slot, sequence in sequences.items():
            sequence.image_tokens += drawn[:, batch.slots.index(slot)].tolist()
            sequence.num_cached += len(drawn)
        return len(drawn)

    def preview(self, slot: int) -> DecodedTokens:
        """What there is; the rest will be in the mean colour of that."""
        return DecodedTokens(list(self._sequences[slot].image_tokens), is_finished=False)

    def result(self, slot: int) -> DecodedTokens:
        return DecodedTokens(self._sequences[slot].image_tokens, is_finished=True)

    def decode(self, views: Sequence[DecodedTokens]) -> list[Picture]:
        """Finished ones by the VQGAN; of the others a glimpse, since it takes as long as a hundred steps."""
        finished = iter(self._decode([view.image_tokens for view in views if view.is_finished]))
        glimpses = iter(self._glimpses([view.image_tokens for view in views if not view.is_finished]))
        return [next(finished if view.is_finished else glimpses) for view in views]

    def release(self, slot: int) -> None:
        """Frees the slot; its lane idles until the batch is laid out anew."""
        self._sequences.pop(slot, None)
        if self._batch is not None:
            self._batch.slots = [None if lane == slot else lane for lane in self._batch.slots]

    def _new_sequence(self, job: GenerateJob) -> TokenSequence:
        tokens = self.model.text_tokens(job.prompt)
        return TokenSequence(job, self._prompt_of(tokens), tokens.mask)

    def _prompt_of(self, tokens: TextTokens) -> dalle.EncodedPrompt:
        name = tokens.ids.tobytes()
        if name not in self._prompts:
            self._prompts[name] = self._encode(tokens)
        self._prompts.move_to_end(name)
        while len(self._prompts) > MAX_CACHED_PROMPTS:
            self._prompts.popitem(last=False)
        return self._prompts[name]

    def _encode(self, tokens: TextTokens) -> dalle.EncodedPrompt:
        ids, mask = jax.device_put((tokens.ids[None], tokens.mask[None]))
        return _encoded(self.model.dalle_params, self._config, ids, mask)

    def _ensure_batch(self) -> Batch:
        """The batch with all sketches in it, neither larger nor longer than it must be."""
        lanes = next(size for size in _bucket_sizes(self.num_slots) if size >= len(self._sequences))
        # A finished sketch has filled the longest cache; it is not stepped again.
        filled = max(sequence.num_cached for sequence in self._sequences.values())
        length = next((length for length in self._lengths if length > filled), self._lengths[-1])
        batch = self._batch
        if (
            batch is None
            or (len(batch.slots), batch.length) != (lanes, length)
            or not self._sequences.keys() <= set(batch.slots)
        ):
            members: list[tuple[int | None, TokenSequence]] = list(self._sequences.items())
            members += [(None, members[0][1])] * (lanes - len(members))
            longest = max(sequence.num_text_tokens for sequence in self._sequences.values())
            text_length = next(size for size in self._text_lengths(lanes) if size >= longest)
            batch = self._batch = self._build_batch(members, length, text_length)
        return batch

    def _build_batch(
        self, members: Sequence[tuple[int | None, TokenSequence]], length: int, text_length: int
    ) -> Batch:
        return build_batch(
            self._config,
            members,
            length,
            text_length,
            self._batch,
            largest=self._largest,
            dtype=dalle.compute_dtype(self.model.dalle_params),
        )

    @property
    def _largest(self) -> tuple[int, int]:
        return self.num_slots, self._lengths[-1]

    def _text_lengths(self, lanes: int) -> list[int]:
        """How many text tokens of the prompts a batch of this size can hold."""
        lengths = {self._config.max_text_length}
        if lanes == self.num_slots:
            lengths.add(min(self._short_text_length, self._config.max_text_length))
        return sorted(lengths)

    def _advance(self, slots: Sequence[int], count: int) -> tuple[Batch, Int[np.ndarray, "N B"]]:
        """Up to `count` tokens, as many as the batch's cache has room for. A failure takes the cache with it."""
        try:
            with oom_as_job_error():
                batch = self._ensure_batch()
                filled = max(self._sequences[slot].num_cached for slot in slots)
                return batch, self._forward(batch, slots, min(count, batch.length - filled))
        except BaseException:
            self._batch = None
            for sequence in self._sequences.values():
                sequence.num_cached = 0
            raise

    def _forward(self, batch: Batch, slots: Sequence[int], count: int) -> Int[np.ndarray, "N B"]:
        """`count` tokens for every lane; only those of `slots` are meant. Has finished when it returns."""
        tokens = np.full(len(batch.slots), self._config.decoder_start_token_id, np.int32)
        positions = np.zeros(len(batch.slots), np.int32)
        for lane, slot in enumerate(batch.slots):
            if slot is not None and (sequence := self._sequences[slot]).num_cached:
                tokens[lane] = sequence.image_tokens[sequence.num_cached - 1]
                positions[lane] = min(sequence.num_cached, batch.length - 1)
        arguments = self.model.dalle_params, self._config, batch, self._uncond_prompt, tokens, positions
        if self._tokens_per_dispatch == 1:
            return draw_next(*arguments)
        is_stepped = np.array([slot in slots for slot in batch.slots])
        return draw_several(*arguments, is_stepped, count=count, most=self._tokens_per_dispatch)

    def _decode(self, pictures_tokens: Sequence[Sequence[int]]) -> list[Picture]:
        # A picture a processor: two threads that share each picture of a batch wait for one another, 200 times.
        threads = min(PICTURES_DECODED_TOGETHER, num_processors())
        with oom_as_job_error(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._decode_one, pictures_tokens))

    def _decode_one(self, image_tokens: Sequence[int]) -> Picture:
        tokens = jax.device_put(np.array([image_tokens], np.int32))
        return np.asarray(jax.device_get(decode_pixels(self.model.vqgan_params, tokens)))[0]

    @cached_property
    def _codebook(self) -> Float[np.ndarray, "codes E"]:
        return np.asarray(jax.device_get(self.model.vqgan_params["quantize"]["embedding"]["embedding"]))

    @cached_property
    def _glimpse(self) -> LatentPreview:
        side = self.model.vqgan_config.tokens_per_side
        count = -(-NUM_SAMPLES // side**2)
        rng = np.random.default_rng(0)
        draws = rng.integers(0, self._config.num_codes, count * side**2)
        tokens = draws[random_blocks(rng, count, side, side)]
        pictures = self._decode(tokens.reshape(count, -1).tolist())
        return LatentPreview.fit(self._codebook[tokens], np.stack(pictures))

    def _glimpses(self, pictures_tokens: Sequence[Sequence[int]]) -> list[Picture]:
        if not pictures_tokens:
            return []
        side = self.model.vqgan_config.tokens_per_side
        grids = np.zeros((len(pictures_tokens), side**2, self._codebook.shape[1]), np.float32)
        for grid, tokens in zip(grids, pictures_tokens, strict=True):
            codes = self._codebook[tokens]
            grid[: len(tokens)] = codes
            if tokens:
                grid[len(tokens) :] = codes.mean(0)
        return self._glimpse.pictures(rearrange(grids, "b (h w) e -> b h w e", h=side))


def generate(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampling: SamplingDefaults | None = None,
    num_slots: int = 8,
) -> list[Picture]:
    """One picture for each prompt and its seed, as the service would make it; `sampling` replaces the model's own."""
    settings = asdict(sampling or model.sampling)
    waiting = deque(enumerate(zip(prompts, seeds, strict=True)))
    stepper = GeneratorStepper(model, num_slots=num_slots)
    running: dict[int, tuple[int, int]] = {}  # slot: which picture, and how many steps it still takes
    pictures: dict[int, Picture] = {}
    while waiting or running:
        for slot in set(range(num_slots)) - running.keys():
            if waiting:
                index, (prompt, seed) = waiting.popleft()
                running[slot] = index, stepper.admit(slot, GenerateJob(prompt, seed, **settings))
        made = stepper.step_many(list(running), min(steps for _, steps in running.values()))
        running = {slot: (index, steps - made) for slot, (index, steps) in running.items()}
        done = [slot for slot, (_, steps) in running.items() if steps == 0]
        for slot, picture in zip(done, stepper.decode([stepper.result(slot) for slot in done]), strict=True):
            pictures[running.pop(slot)[0]] = picture
            stepper.release(slot)
    return [pictures[index] for index in range(len(prompts))]


@partial(jax.jit, static_argnames="config")
def _encoded(
    params: Params, config: DalleConfig, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dalle.EncodedPrompt:
    return dalle.project_cross_attention(params, config, dalle.encode(params, config, ids, mask), mask)


def _bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest` itself: the numbers of lanes, or of pictures, that programs are compiled for."""
    return [size for size in (2**i for i in range(largest.bit_length())) if size < largest] + [largest]


def _cache_lengths(config: DalleConfig, num_slots: int, *, most_parts: int) -> list[int]:
    """The lengths that a batch's cache can have: attending to a long one costs as much as reading the weights.

    Each has programs of its own, which take longer to compile for an accelerator than they save.
    """
    floats = 2 * config.decoder_layers * 2 * num_slots * config.image_length * config.d_model
    parts = most_parts if 4 * floats > SMALL_CACHE_BYTES else 2
    return [-(-config.image_length * part // parts) for part in range(1, parts + 1)]
