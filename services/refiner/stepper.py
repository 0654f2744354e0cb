"""Refining many pictures at once: a step is one forward of the UNet for all slots, each at its own timestep.

A slot's start, guidance, prompt and place in the schedule are its own; only the forward is shared. It knows the
networks and the sampler; the queue, the callers and the protocol are elsewhere.
"""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from services.images.codec import Picture
from services.images.latent_preview import NUM_SAMPLES, LatentPreview, random_blocks
from services.images.masks import Mask
from services.pytorch.device import oom_as_job_error
from services.pytorch.device_program import DeviceProgram, Mode, bucket_sizes
from services.pytorch.winograd import Chooser
from services.refiner.inpainting import Inpainting, plan_inpainting
from services.refiner.model import RefinerModel
from services.refiner.networks.diffusion import (
    CALLS_PER_PRK_STEP,
    MIN_STEPS,
    NUM_PRK_STEPS,
    SamplerPlace,
    make_schedule,
    start_sampler,
)
from services.refiner.slot_tensors import SlotTensors

# A seed gives several streams, so that a picture's noise is never the noise of its init latent.
NOISE_STREAM, INIT_STREAM = 0, 1
NUM_CACHED_PROMPTS = 64
NUM_CACHED_INIT_LATENTS = 16


@dataclass(frozen=True)
class RefineJob:
    """One variation. Without an init image it starts from pure noise and skips nothing.

    `init_seed` picks the sample of the init image's latent; variations of one request share it. With a `mask` only that
    part of the init image is made anew; without an init image it means nothing.
    """

    prompt: str
    init_image: Picture | None = None
    seed: int = 0
    init_seed: int = 0
    negative_prompt: str = ""
    num_steps: int = 100
    skip_ratio: float = 0.5
    guidance_scale: float = 5.0
    mask: Mask | None = None

    @property
    def num_skipped(self) -> int:
        # Rounded, because int(100 * 0.29) is 28.
        return 0 if self.init_image is None else round(self.num_steps * self.skip_ratio)

    @property
    def num_calls(self) -> int:
        """How often the UNet is asked: its steps, and three more in each Runge-Kutta step."""
        return self.num_steps - self.num_skipped + NUM_PRK_STEPS * (CALLS_PER_PRK_STEP - 1)


@dataclass(frozen=True)
class _Slot:
    """What the host knows of a job; its tensors are in SlotTensors."""

    place: SamplerPlace
    guidance_scale: float
    inpainting: Inpainting | None = None


@dataclass(frozen=True)
class _InitLatentKey:
    """A picture of the model's size and the seed of its latent; equal if the pictures are."""

    digest: bytes
    init_seed: int
    image: Picture = field(compare=False, repr=False)


@dataclass(frozen=True)
class Latent:
    """A picture as the diffusion has it, and whether it is what the picture will be."""

    latent: Float[Tensor, "Z H W"]
    is_finished: bool
    inpainting: Inpainting | None = None

    def paste(self, picture: Picture) -> Picture:
        """The decoded latent, with what is kept of the init image put back."""
        return picture if self.inpainting is None else self.inpainting.paste(picture)


class RefinerStepper:
    """A Stepper of the engine: `num_slots` latents that advance by one call of the UNet a step."""

    def __init__(
        self,
        model: RefinerModel,
        *,
        num_slots: int,
        mode: Mode | None = None,
        choices: Chooser | None = None,
    ) -> None:
        """`mode` is how a step is run: see DeviceProgram. `choices` may split a batch that is slower than its parts."""
        self.num_slots = num_slots
        self._model = model
        self._slots: dict[int, _Slot] = {}
        self._tensors = SlotTensors(model, num_slots)
        self._choices = choices
        self._program = DeviceProgram(
            self._tensors.advance, model.device, sizes=bucket_sizes(num_slots), mode=mode
        )
        # Decoding runs beside the steps, which do not wait for it.
        self._stream = None
        if model.device.type == "cuda":
            self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call] # torch has no annotation there
        self._encode_prompt = lru_cache(NUM_CACHED_PROMPTS)(model.encode_prompt)
        self._init_latent = lru_cache(NUM_CACHED_INIT_LATENTS)(self._sample_init_latent)

    def warm_up(self) -> None:
        """Touches all networks, with one slot and with all."""
        size = self._model.image_size
        job = RefineJob("warm up", np.zeros((size, size, 3), np.uint8), num_steps=MIN_STEPS, skip_ratio=0)
        for slot in range(self.num_slots):
            self.admit(slot, job)
        with self._program.capturing():
            for size in self._program.sizes:
                self.step(range(size))
        if self._choices is not None:
            self._tensors.choose_batches(self._choices)
        _ = self._glimpse
        for slot in range(self.num_slots):
            self.release(slot)

    def admit(self, slot: int, job: RefineJob) -> int:
        """Encodes the prompts and the init image, unless they were just seen, and draws the noise."""
        with oom_as_job_error():
            cond, uncond = self._encode_prompt(job.prompt), self._encode_prompt(job.negative_prompt)
            noise = torch.from_numpy(self._noise(job.seed, NOISE_STREAM)).to(self._model.device)
            init, inpainting, image_embed, kept_noise = None, None, None, None
            if job.init_image is not None:
                image = self._model.resize(job.init_image)
                digest = hashlib.sha256(image.tobytes()).digest()
                init = self._init_latent(_InitLatentKey(digest, job.init_seed, image))
                if job.mask is not None:
                    inpainting = plan_inpainting(
                        image, job.mask, self._model.downsampling, self._model.device
                    )
                    # The whole picture is encoded and its latent is masked, as GLID-3-xl was trained.
                    kept = init * inpainting.is_kept
                    if self._model.is_trained_to_inpaint:
                        image_embed, start = kept, None
                    else:
                        kept_noise, start = noise, kept
                    # Nothing of what is repainted is there to begin with, unless steps of it are skipped.
                    init = init if job.num_skipped else start
            sampler = start_sampler(make_schedule(job.num_steps), noise, init, job.num_skipped)
            is_kept = None if kept_noise is None or inpainting is None else inpainting.is_kept
            self._tensors.write(
                slot, sampler.x, cond, uncond, image_embed=image_embed, kept_noise=kept_noise, is_kept=is_kept
            )
        self._slots[slot] = _Slot(
            SamplerPlace(sampler.schedule, sampler.index), job.guidance_scale, inpainting
        )
        return job.num_calls

    def step(self, slots: Sequence[int]) -> None:
        """Asks the UNet once about all slots, with their prompts and without, in one batch."""
        rows = [self._slots[slot] for slot in slots]
        numbers = [(*row.place.weights, row.guidance_scale) for row in rows]
        # A scale of 1 is the prompt alone: such a slot needs no unconditional row.
        guided = [i for i, row in enumerate(rows) if row.guidance_scale != 1]
        padding = self._program.num_rows(len(slots)) - len(slots)
        if guided and self._program.mode != "direct":
            # One program whichever they are.
            guided = list(range(len(slots) + padding))
        device = self._model.device
        with oom_as_job_error():
            self._program(
                torch.tensor([*slots, *[self._tensors.spare_slot] * padding], device=device),
                torch.tensor(guided, dtype=torch.long, device=device),
                torch.tensor([*numbers, *numbers[:1] * padding], dtype=torch.float32, device=device),
            )
            self._wait()
        self._slots.update(
            (slot, replace(row, place=row.place.advance())) for slot, row in zip(slots, rows, strict=True)
        )

    def preview(self, slot: int) -> Latent:
        """What the picture would be if the noise seen now were all there is."""
        return self._view(slot, is_finished=False)

    def result(self, slot: int) -> Latent:
        """The last of those guesses: the reference takes it, and not its last sample."""
        return self._view(slot, is_finished=True)

    def decode(self, views: Sequence[Latent]) -> list[Picture]:
        """Finished ones by the autoencoder; of the others a glimpse, since it takes longer than a step."""
        finished = [view.latent for view in views if view.is_finished]
        unfinished = [view.latent for view in views if not view.is_finished]
        with oom_as_job_error(), self._beside_steps():
            decoded = iter(self._model.decode(torch.stack(finished)) if finished else [])
            glimpses = iter(self._glimpse.pictures(_grids(torch.stack(unfinished))) if unfinished else [])
        return [view.paste(next(decoded if view.is_finished else glimpses)) for view in views]

    def release(self, slot: int) -> None:
        """Forgets the slot's job; one that is free already stays so."""
        self._slots.pop(slot, None)

    def _view(self, slot: int, *, is_finished: bool) -> Latent:
        latent = self._tensors.pred_xstart(slot)
        self._wait()
        return Latent(latent, is_finished, self._slots[slot].inpainting)

    def _wait(self) -> None:
        """For the steps alone: what is decoded meanwhile goes on."""
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()

    def _beside_steps(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    @cached_property
    def _glimpse(self) -> LatentPreview:
        channels, height, width = self._model.latent_shape
        count = -(-NUM_SAMPLES // (height * width))
        rng = np.random.default_rng(0)
        draws = rng.standard_normal((count * height * width, channels), np.float32)
        grids = draws[random_blocks(rng, count, height, width)]
        latents = torch.from_numpy(rearrange(grids, "b h w z -> b z h w")).to(self._model.device)
        return LatentPreview.fit(grids, np.stack(self._model.decode(latents)))

    def _sample_init_latent(self, key: _InitLatentKey) -> Float[Tensor, "Z H W"]:
        return self._model.encode_image(key.image, self._noise(key.init_seed, INIT_STREAM))

    def _noise(self, seed: int, stream: int) -> Float[np.ndarray, "Z H W"]:
        # NumPy's generator: torch's on the CPU takes 32 bits of a seed and gives 7 and 7 + 2**32 the same noise.
        rng = np.random.default_rng([seed, stream])
        return rng.standard_normal(self._model.latent_shape, dtype=np.float32)


def refine(model: RefinerModel, jobs: Sequence[RefineJob]) -> list[Picture]:
    """Makes a picture of each job, all in one batch as long as they last."""
    stepper = RefinerStepper(model, num_slots=len(jobs))
    num_left = {slot: stepper.admit(slot, job) for slot, job in enumerate(jobs)}
    while slots := [slot for slot, left in num_left.items() if left]:
        stepper.step(slots)
        for slot in slots:
            num_left[slot] -= 1
    return stepper.decode([stepper.result(slot) for slot in range(len(jobs))])


def _grids(latents: Float[Tensor, "N Z H W"]) -> Float[np.ndarray, "N H W Z"]:
    return rearrange(latents, "n z h w -> n h w z").float().cpu().numpy()
