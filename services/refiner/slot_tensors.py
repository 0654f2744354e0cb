"""The tensors of all slots of the refiner, and what a step makes of them: on the device, in one function.

A slot is a row of each. It knows the networks and the sampler's arithmetic, but no job.
Dimension key: S slots and a spare one, B slots that are stepped, G of them guided, Z H W a latent, T E the context,
K CLIP width.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from services.pytorch.winograd import Chooser
from services.refiner.model import Conditioning, RefinerModel
from services.refiner.networks.diffusion import SamplerRows, advance_rows, guide

# A smaller UNet answers in less time than a measurement would save in hours.
FEWEST_PARAMS_TO_SPLIT = 50e6


class SlotTensors:
    def __init__(self, model: RefinerModel, num_slots: int) -> None:
        self._model = model
        # What pads a batch: its row is computed and never read.
        self.spare_slot = num_slots

        def latents(*between: int) -> Float[Tensor, "S ..."]:
            return torch.zeros(num_slots + 1, *between, *model.latent_shape, device=model.device)

        self._rows = SamplerRows(latents(), latents(), latents(), latents(), latents(3))
        # What a network that was trained to fill in is shown: the init image's latent, zero where it is repainted.
        self._image_embed = latents() if model.is_trained_to_inpaint else None
        # For any other network: the noise of the kept latents, which at every step are the init image's with that noise.
        self._kept_noise: Float[Tensor, "S Z H W"] | None = None
        self._is_kept: Bool[Tensor, "S 1 H W"] | None = None
        if not model.is_trained_to_inpaint:
            self._kept_noise = latents()
            self._is_kept = torch.zeros_like(self._kept_noise[:, :1], dtype=torch.bool)
        # Of a batch with so many rows, how many go through the UNet at once; where there is none, all.
        self._most_rows: dict[int, int] = {}
        # Of the prompt and of the negative prompt.
        self._contexts: tuple[Float[Tensor, "S T E"], Float[Tensor, "S T E"]] | None = None
        self._clip_embeds: tuple[Float[Tensor, "S K"], Float[Tensor, "S K"]] | None = None

    @torch.inference_mode()
    def write(
        self,
        slot: int,
        x: Float[Tensor, "Z H W"],
        cond: Conditioning,
        uncond: Conditioning,
        *,
        image_embed: Float[Tensor, "Z H W"] | None,
        kept_noise: Float[Tensor, "Z H W"] | None,
        is_kept: Bool[Tensor, "1 H W"] | None,
    ) -> None:
        """Begins a job that starts at `x`."""
        for tensor in (self._rows.x, self._rows.point, self._rows.pred_xstart):
            tensor[slot] = x
        # The last job's would be read, though not used: it must at least be finite.
        self._rows.eps_sum[slot] = 0
        self._rows.old_eps[slot] = 0
        if self._image_embed is not None:
            self._image_embed[slot] = 0 if image_embed is None else image_embed
        if self._kept_noise is not None and self._is_kept is not None:
            self._kept_noise[slot] = 0 if kept_noise is None else kept_noise
            self._is_kept[slot] = False if is_kept is None else is_kept
        if self._contexts is None:
            self._contexts = self._like(cond.context), self._like(cond.context)
        if self._clip_embeds is None and cond.clip_embed is not None:
            self._clip_embeds = self._like(cond.clip_embed), self._like(cond.clip_embed)
        for i, conditioning in enumerate((cond, uncond)):
            self._contexts[i][slot] = conditioning.context[0]
            if self._clip_embeds is not None and conditioning.clip_embed is not None:
                self._clip_embeds[i][slot] = conditioning.clip_embed[0]

    def pred_xstart(self, slot: int) -> Float[Tensor, "Z H W"]:
        """The best guess of the finished latent so far, untouched by later steps."""
        return self._rows.pred_xstart[slot].clone()

    def advance(
        self, slots: Int[Tensor, " B"], guided: Int[Tensor, " G"], numbers: Float[Tensor, "B numbers"]
    ) -> None:
        """One call of the UNet about these slots, and the sampler's answer to it.

        `guided` are places in `slots`, which get a row without the prompt. `numbers` are SamplerWeights and, behind them,
        the guidance scale. Nothing is written before all is computed.
        """
        weights, scale = numbers[:, :-1], numbers[:, -1]
        rows = SamplerRows(*(tensor[slots] for tensor in self._rows))
        eps = self._guided_noise(rows.point, slots, guided, weights[:, 0], scale)
        if self._kept_noise is not None and self._is_kept is not None:
            # With the true noise in place of the seen one the sampler moves a latent exactly along it.
            eps = torch.where(self._is_kept[slots], self._kept_noise[slots], eps)
        advanced = advance_rows(rows, eps, weights)
        for tensor, new in zip(self._rows, advanced, strict=True):
            tensor.index_copy_(0, slots, new)

    def _guided_noise(
        self,
        points: Float[Tensor, "B Z H W"],
        slots: Int[Tensor, " B"],
        guided: Int[Tensor, " G"],
        timesteps: Float[Tensor, " B"],
        scale: Float[Tensor, " B"],
    ) -> Float[Tensor, "B Z H W"]:
        asked = torch.cat([slots, slots[guided]])
        inputs = (
            torch.cat([points, points[guided]]),
            torch.cat([timesteps, timesteps[guided]]),
            self._with_and_without(self._contexts, slots, guided),
            None if self._clip_embeds is None else self._with_and_without(self._clip_embeds, slots, guided),
            None if self._image_embed is None else self._image_embed[asked],
        )
        noise = self._predict_noise(inputs, self._most_rows.get(len(asked), len(asked)))
        cond, uncond = noise[: len(slots)], noise[len(slots) :]
        if not len(guided):
            return cond
        moved = guide(cond[guided], uncond, scale[guided], self._model.unet.config.guided_channels)
        # A captured step guides all slots: with a scale of 1 the prompt alone decides, to the last bit.
        moved = torch.where(scale[guided][:, None, None, None] == 1, cond[guided], moved)
        return cond.index_copy(0, guided, moved)

    def _predict_noise(self, inputs: Sequence[Tensor | None], most_rows: int) -> Float[Tensor, "R Z H W"]:
        """In parts of up to `most_rows` rows."""
        parts = zip(
            *(
                itertools.repeat(None) if tensor is None else torch.split(tensor, most_rows)
                for tensor in inputs
            ),
            strict=False,
        )
        answers = [self._model.predict_noise(*part) for part in parts]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    @torch.inference_mode()
    def choose_batches(self, choices: Chooser) -> None:
        """Measures whether a step of all slots is faster in parts of two rows, as for one slot; all slots are written.

        A small network's steps are too short for it to matter.
        """
        unet, rows = self._model.unet, 2 * self.spare_slot
        num_params = sum(tensor.numel() for tensor in unet.state_dict().values())
        if num_params < FEWEST_PARAMS_TO_SPLIT or rows == 2:
            return
        slots = torch.arange(self.spare_slot).repeat(2)
        inputs = (
            self._rows.point[slots],
            torch.zeros(rows),
            self._with_and_without(self._contexts, slots, slots[:0]),
            None
            if self._clip_embeds is None
            else self._with_and_without(self._clip_embeds, slots, slots[:0]),
            None if self._image_embed is None else self._image_embed[slots],
        )
        side, dtype = self._model.latent_shape[1], str(self._model.dtype).removeprefix("torch.")
        what = f"UNet of {num_params / 1e6:.0f} million weights, {rows} rows of {side} x {side}, {dtype}"
        ways = {
            "together": lambda: self._predict_noise(inputs, rows),
            "in pairs": lambda: self._predict_noise(inputs, 2),
        }
        if choices.choose(what, ways) == "in pairs":
            self._most_rows[rows] = 2

    def _with_and_without(
        self,
        pair: tuple[Float[Tensor, "S ..."], Float[Tensor, "S ..."]] | None,
        slots: Int[Tensor, " B"],
        guided: Int[Tensor, " G"],
    ) -> Float[Tensor, "R ..."]:
        if pair is None:
            raise ValueError("no slot was ever written")
        return torch.cat([pair[0][slots], pair[1][slots[guided]]])

    def _like(self, row: Float[Tensor, "1 ..."]) -> Float[Tensor, "S ..."]:
        return row.new_zeros(self.spare_slot + 1, *row.shape[1:])
