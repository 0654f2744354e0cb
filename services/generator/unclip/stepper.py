"""Drawing many pictures at once with unCLIP: jobs in the same phase share a forward, each at its own timestep.

A job goes through up to three phases: the prior makes a CLIP embedding, the decoder draws it small, super-resolution
enlarges that. A step of the stepper is one forward for each phase that has jobs, so none waits for another's end.
It knows the networks and the schedule; the queue, the callers and the protocol are elsewhere.
Dimension key: B rows, K CLIP width, H W pixels.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from services.errors import InvalidRequest
from services.generator.unclip.embeddings import mix, shift
from services.generator.unclip.model import EncodedPrompt, UnclipModel, to_pictures
from services.generator.unclip.networks.text_projection import Conditioning
from services.generator.unclip.schedule import (
    MIN_STEPS,
    DiffusionConfig,
    StepWeights,
    advance,
    step_weights,
)
from services.images.codec import Picture
from services.pytorch.device import oom_as_job_error
from services.pytorch.device_program import bucket_sizes

MAX_IMAGE_PROMPTS = 4
NUM_CACHED_PROMPTS = 64
NUM_CACHED_PICTURES = 64
# A forward of super-resolution needs much more memory a row than one of the others.
MAX_SHARPENED_TOGETHER = 8
# What a job may ask for; only super-resolution can be left out.
LOWEST_STEPS = {"prior_num_steps": MIN_STEPS, "decoder_num_steps": MIN_STEPS, "super_res_num_steps": 0}


class Phase(IntEnum):
    """Numbers the streams of a seed's noise, too."""

    PRIOR = 0
    DECODER = 1
    SUPER_RES = 2


@dataclass(frozen=True)
class ImagePrompt:
    """A picture whose content and style the result takes up, and its share of the mixture."""

    image: Picture
    weight: float = 1.0


@dataclass(frozen=True)
class TextDifference:
    """Moves the embedding away from what one text means, towards what another means, by a share of the way."""

    source: str
    target: str
    weight: float = 0.35  # the paper's are 0.25 to 0.5


@dataclass(frozen=True)
class GenerateJob:
    """One picture. Without image prompts the prior makes the embedding from the text.

    Numbers of steps of 0 leave super-resolution out; a guidance scale of 1 asks for no unconditional rows.
    """

    prompt: str
    seed: int = 0
    image_prompts: tuple[ImagePrompt, ...] = ()
    text_difference: TextDifference | None = None
    prior_num_steps: int = 25
    decoder_num_steps: int = 25
    super_res_num_steps: int = 7
    prior_guidance_scale: float = 4.0
    guidance_scale: float = 8.0

    @property
    def phases(self) -> tuple[tuple[Phase, int], ...]:
        """The phases that this job goes through, with their numbers of steps."""
        steps = (
            (Phase.PRIOR, 0 if self.image_prompts else self.prior_num_steps),
            (Phase.DECODER, self.decoder_num_steps),
            (Phase.SUPER_RES, self.super_res_num_steps),
        )
        return tuple((phase, num_steps) for phase, num_steps in steps if num_steps)

    def check(self) -> None:
        """Raises InvalidRequest for settings that no picture can be made with."""
        if len(self.image_prompts) > MAX_IMAGE_PROMPTS:
            raise InvalidRequest(
                "image_prompts", f"must be at most {MAX_IMAGE_PROMPTS}, got {len(self.image_prompts)}"
            )
        if self.image_prompts and sum(prompt.weight for prompt in self.image_prompts) <= 0:
            raise InvalidRequest("image_prompts", "must have weights of which one is above 0")
        for name, lowest in LOWEST_STEPS.items():
            # No schedule has one step, and 0 leaves super-resolution out.
            if (num_steps := getattr(self, name)) < lowest or 0 < num_steps < MIN_STEPS:
                zero = "0 or " if lowest == 0 else ""
                raise InvalidRequest(
                    f"settings.{name}", f"must be {zero}{MIN_STEPS} or more, got {num_steps}"
                )


@dataclass(frozen=True)
class _Slot:
    """A job in one of its phases, after `step` steps."""

    job: GenerateJob
    phase: Phase
    schedule: tuple[StepWeights, ...]  # of this phase
    step: int
    x: Float[Tensor, "..."]
    prompt: EncodedPrompt
    pred_x0: Float[Tensor, "3 H W"] | None = None  # of a phase that draws
    cond: Conditioning | None = None
    uncond: Conditioning | None = None
    enlarged: Float[Tensor, "3 H W"] | None = None

    @property
    def weights(self) -> StepWeights:
        return self.schedule[self.step]

    @property
    def guidance_scale(self) -> float:
        return self.job.prior_guidance_scale if self.phase is Phase.PRIOR else self.job.guidance_scale


@dataclass(frozen=True)
class _PictureKey:
    """A picture by what is in it."""

    digest: bytes
    picture: Picture = field(compare=False, repr=False)


class UnclipStepper:
    """A Stepper of the engine: `num_slots` jobs, each in the phase that it is in."""

    def __init__(self, model: UnclipModel, *, num_slots: int) -> None:
        self.num_slots = num_slots
        self._model = model
        self._slots: dict[int, _Slot] = {}
        self._encode_prompt = lru_cache(NUM_CACHED_PROMPTS)(model.encode_prompt)
        self._encode_picture = lru_cache(NUM_CACHED_PICTURES)(
            lambda key: self._model.encode_picture(key.picture)
        )
        self._diffusion: dict[Phase, DiffusionConfig] = {
            Phase.PRIOR: model.prior_diffusion,
            Phase.DECODER: model.decoder_diffusion,
            Phase.SUPER_RES: model.super_res_diffusion,
        }
        self._forward: dict[Phase, Callable[[Sequence[_Slot]], Tensor]] = {
            Phase.PRIOR: self._predict_embeddings,
            Phase.DECODER: self._decode,
            Phase.SUPER_RES: self._sharpen,
        }

    def warm_up(self) -> None:
        """Touches all networks, with one slot and with all; on a GPU with every number of slots that is captured.

        On a CPU nothing is compiled, and a step of Karlo's super-resolution takes minutes: the text tower alone.
        """
        if self._model.device.type == "cpu":
            self._encode_prompt("warm up")
            return
        size = self._model.decoder.config.image_size
        pictures = (ImagePrompt(np.zeros((size, size, 3), np.uint8)),) if self._model.image_encoder else ()
        job = GenerateJob(
            "warm up",
            image_prompts=() if self._model.prior else pictures,
            prior_num_steps=MIN_STEPS,
            decoder_num_steps=MIN_STEPS,
            super_res_num_steps=MIN_STEPS if self._model.super_res else 0,
        )
        counts = {1, self.num_slots}
        if self._model.device.type == "cuda":
            counts.update(bucket_sizes(self.num_slots))
        for slots in (range(count) for count in sorted(counts)):
            num_steps = {slot: self.admit(slot, job) for slot in slots}
            for _ in range(num_steps[0]):
                self.step(slots)
            for slot in slots:
                self.release(slot)
        for prompt in pictures:
            self._model.encode_picture(prompt.image)

    def admit(self, slot: int, job: GenerateJob) -> int:
        """Encodes the prompt and the pictures, unless they were just seen, and draws the first noise."""
        job.check()
        self._check_parts(job)
        with oom_as_job_error():
            prompt = self._encode_prompt(job.prompt)
            if job.image_prompts:
                admitted = self._begin_decoder(job, prompt, self._mixed(job.image_prompts))
            else:
                noise = self._noise(job.seed, Phase.PRIOR, 0, (self._model.text_encoder.config.embed_dim,))
                admitted = _Slot(job, Phase.PRIOR, self._schedule(job, Phase.PRIOR), 0, noise, prompt)
        self._slots[slot] = admitted
        return sum(num_steps for _, num_steps in job.phases)

    @torch.inference_mode()
    def step(self, slots: Sequence[int]) -> None:
        """One forward for all slots of each phase, with their prompts and, where guidance asks, without."""
        advanced: dict[int, _Slot] = {}
        with oom_as_job_error():
            for phase in Phase:
                members = [slot for slot in slots if self._slots[slot].phase is phase]
                if not members:
                    continue
                rows = [self._slots[slot] for slot in members]
                output = self._forward[phase](rows)
                advanced |= dict(
                    zip(members, self._advance(rows, output, self._diffusion[phase]), strict=True)
                )
            if self._model.device.type == "cuda":
                torch.cuda.current_stream(self._model.device).synchronize()
        self._slots.update(advanced)

    def preview(self, slot: int) -> Float[Tensor, "3 H W"] | None:
        """The picture as the network sees it behind the noise; None while the prior makes the embedding."""
        row = self._slots[slot]
        return row.enlarged if row.pred_x0 is None else row.pred_x0

    def result(self, slot: int) -> Float[Tensor, "3 H W"]:
        return self._slots[slot].x

    def decode(self, views: Sequence[Float[Tensor, "3 H W"]]) -> list[Picture]:
        """They are pixels already."""
        return [to_pictures(view[None])[0] for view in views]

    def release(self, slot: int) -> None:
        """Forgets the slot's job; one that is free already stays so."""
        self._slots.pop(slot, None)

    def _check_parts(self, job: GenerateJob) -> None:
        if job.image_prompts and self._model.image_encoder is None:
            raise InvalidRequest(
                "image_prompts", "must be empty: this model has no image_encoder to see them"
            )
        if not job.image_prompts and self._model.prior is None:
            raise InvalidRequest(
                "image_prompts", "must be given: this model has no prior, which draws from text"
            )
        if job.super_res_num_steps and self._model.super_res is None:
            raise InvalidRequest(
                "settings.super_res_num_steps", "must be 0: this model has no super-resolution"
            )
        for phase, num_steps in job.phases:
            most = self._diffusion[phase].num_train_timesteps
            if num_steps > most:
                raise InvalidRequest(
                    f"settings.{phase.name.lower()}_num_steps", f"must be at most {most}, got {num_steps}"
                )

    def _schedule(self, job: GenerateJob, phase: Phase) -> tuple[StepWeights, ...]:
        return step_weights(dict(job.phases)[phase], self._diffusion[phase].num_train_timesteps)

    def _advance(self, rows: Sequence[_Slot], output: Tensor, diffusion: DiffusionConfig) -> list[_Slot]:
        """Takes the networks' answers; a row at the end of its phase begins the next one."""
        shape = tuple(rows[0].x.shape)
        noise = torch.stack([self._noise(row.job.seed, row.phase, row.step + 1, shape) for row in rows])
        x = torch.stack([row.x for row in rows])
        weights = [row.weights for row in rows]
        following, pred_x0 = advance(x, output, noise, weights, diffusion)
        return [
            self._follow(
                replace(
                    row,
                    step=row.step + 1,
                    x=following[i],
                    pred_x0=None if row.phase is Phase.PRIOR else pred_x0[i],
                )
            )
            for i, row in enumerate(rows)
        ]

    def _follow(self, row: _Slot) -> _Slot:
        if row.step < len(row.schedule):
            return row
        phases = [phase for phase, _ in row.job.phases]
        place = phases.index(row.phase)
        if row.phase is phases[-1]:
            # A finished row waits here until it is taken.
            return replace(row, step=row.step - 1)
        if phases[place + 1] is Phase.DECODER:
            if self._model.prior is None:
                raise ValueError("a prior's row without a prior")
            return self._begin_decoder(row.job, row.prompt, self._model.prior.unscale(row.x[None]))
        size = self._model.image_size
        enlarged = self._model.enlarge(row.x[None].clamp(-1, 1))[0]
        noise = self._noise(row.job.seed, Phase.SUPER_RES, 0, (3, size, size))
        schedule = self._schedule(row.job, Phase.SUPER_RES)
        return _Slot(row.job, Phase.SUPER_RES, schedule, 0, noise, row.prompt, enlarged=enlarged)

    def _begin_decoder(
        self, job: GenerateJob, prompt: EncodedPrompt, embedding: Float[Tensor, "1 K"]
    ) -> _Slot:
        if job.text_difference is not None:
            source, target = (
                self._encode_prompt(text).embedding.float()
                for text in (job.text_difference.source, job.text_difference.target)
            )
            embedding = shift(embedding, target - source, job.text_difference.weight)
        uncond = None
        if job.guidance_scale != 1:
            uncond = self._model.condition(self._model.uncond_embedding, self._model.uncond)
        size = self._model.decoder.config.image_size
        noise = self._noise(job.seed, Phase.DECODER, 0, (3, size, size))
        cond = self._model.condition(embedding, prompt)
        schedule = self._schedule(job, Phase.DECODER)
        return _Slot(job, Phase.DECODER, schedule, 0, noise, prompt, cond=cond, uncond=uncond)

    def _mixed(self, prompts: Sequence[ImagePrompt]) -> Float[Tensor, "1 K"]:
        keys = [_PictureKey(_digest(prompt.image), prompt.image) for prompt in prompts]
        return mix([self._encode_picture(key) for key in keys], [prompt.weight for prompt in prompts])

    def _predict_embeddings(self, rows: Sequence[_Slot]) -> Tensor:
        def predict(asked: Sequence[_Slot], *, with_prompt: Sequence[bool]) -> Tensor:
            prompts = [
                row.prompt if told else self._model.uncond
                for row, told in zip(asked, with_prompt, strict=True)
            ]
            return self._model.predict_embeddings(_stack(asked), self._timesteps(asked), prompts)

        return self._guided(rows, predict)

    def _decode(self, rows: Sequence[_Slot]) -> Tensor:
        def predict(asked: Sequence[_Slot], *, with_prompt: Sequence[bool]) -> Tensor:
            told = [row.cond if cond else row.uncond for row, cond in zip(asked, with_prompt, strict=True)]
            present = [one for one in told if one is not None]
            return self._model.decode(_stack(asked), self._timesteps(asked), present)

        return self._guided(rows, predict)

    def _guided(self, rows: Sequence[_Slot], predict: Callable[..., Tensor]) -> Tensor:
        """All rows with their prompts, and in the same forward those without that a guidance scale needs."""
        guided = [i for i, row in enumerate(rows) if row.guidance_scale != 1]
        asked = [*rows, *(rows[i] for i in guided)]
        output = predict(asked, with_prompt=[True] * len(rows) + [False] * len(guided))
        cond, uncond = output[: len(rows)].clone(), output[len(rows) :]
        if guided:
            scales = torch.tensor([rows[i].guidance_scale for i in guided], device=output.device)
            # A learned variance, which follows the prediction, is taken as it is with the prompt.
            channels = rows[0].x.shape[0]
            scales = scales.view(-1, *[1] * (output.ndim - 1))
            moved = uncond[:, :channels] + scales * (cond[guided][:, :channels] - uncond[:, :channels])
            cond[guided, :channels] = moved
        return cond

    def _sharpen(self, rows: Sequence[_Slot]) -> Tensor:
        output: dict[int, Tensor] = {}
        for is_last in (False, True):
            members = [i for i, row in enumerate(rows) if row.weights.is_last is is_last]
            for start in range(0, len(members), MAX_SHARPENED_TOGETHER):
                together = members[start : start + MAX_SHARPENED_TOGETHER]
                asked = [rows[i] for i in together]
                enlarged = torch.stack([row.enlarged for row in asked if row.enlarged is not None])
                made = self._model.sharpen(_stack(asked), enlarged, self._timesteps(asked), is_last=is_last)
                output |= dict(zip(together, made, strict=True))
        return torch.stack([output[i] for i in range(len(rows))])

    def _timesteps(self, rows: Sequence[_Slot]) -> Float[Tensor, " B"]:
        timesteps = [float(row.weights.timestep) for row in rows]
        return torch.tensor(timesteps, dtype=torch.float32, device=self._model.device)

    def _noise(self, seed: int, phase: Phase, step: int, shape: tuple[int, ...]) -> Tensor:
        # By counter: the noise of a step is the same whatever was drawn before. NumPy's generator takes 64 bits of seed.
        rng = np.random.default_rng([seed, int(phase), step])
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(self._model.device)


def generate(model: UnclipModel, jobs: Sequence[GenerateJob], *, num_slots: int = 8) -> list[Picture]:
    """Makes a picture of each job, `num_slots` at a time, as the service would."""
    stepper = UnclipStepper(model, num_slots=num_slots)
    pictures: list[Picture] = []
    for start in range(0, len(jobs), num_slots):
        num_left = {
            slot: stepper.admit(slot, job) for slot, job in enumerate(jobs[start : start + num_slots])
        }
        while slots := [slot for slot, left in num_left.items() if left]:
            stepper.step(slots)
            for slot in slots:
                num_left[slot] -= 1
        pictures += stepper.decode([stepper.result(slot) for slot in num_left])
        for slot in num_left:
            stepper.release(slot)
    return pictures


def _stack(rows: Sequence[_Slot]) -> Tensor:
    return torch.stack([row.x for row in rows])


def _digest(picture: Picture) -> bytes:
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).digest()
