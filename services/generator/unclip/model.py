"""An unCLIP's model folder, loaded: CLIP, prior, decoder and super-resolution, and their conditioning.

Pictures are uint8 (H, W, 3); embeddings, x and predictions float32, whatever the networks compute in.
Dimension key: B rows, T text tokens, E width of the text states, K CLIP width, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from services.errors import ModelError
from services.families import find_family
from services.generator.unclip.networks.prior import Prior, PriorConfig
from services.generator.unclip.networks.text_projection import (
    Conditioning,
    TextProjection,
    TextProjectionConfig,
)
from services.generator.unclip.networks.unet import Context, UNet, UNetConfig
from services.generator.unclip.schedule import DiffusionConfig
from services.images.codec import Picture
from services.pytorch import parts
from services.pytorch.clip import ClipConfig, TextTower, VisionTower, normalize_image
from services.pytorch.clip_tokenizer import Tokenizer, read_clip_tokenizer
from services.pytorch.device import find_device, find_dtype
from services.pytorch.device_program import RowNetwork

DECODER_DIFFUSION = DiffusionConfig(
    num_steps=25, guidance_scale=8.0, predicts="epsilon", variance="learned_range", clip_range=1.0
)
SUPER_RES_DIFFUSION = DiffusionConfig(num_steps=7, guidance_scale=1.0, predicts="epsilon", clip_range=1.0)
SUPER_RES = UNetConfig(image_size=256, in_channels=6, out_channels=3, attention_levels=(), has_scale=False)


@dataclass(frozen=True)
class PriorPart:
    network: PriorConfig = PriorConfig()
    diffusion: DiffusionConfig = DiffusionConfig()


@dataclass(frozen=True)
class DecoderPart:
    network: UNetConfig = UNetConfig()
    diffusion: DiffusionConfig = DECODER_DIFFUSION


@dataclass(frozen=True)
class SuperResPart:
    network: UNetConfig = SUPER_RES
    diffusion: DiffusionConfig = SUPER_RES_DIFFUSION


Config = ClipConfig | PriorPart | TextProjectionConfig | DecoderPart | SuperResPart


def _network_of(make: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    return lambda part: make(part.network)


NETWORKS: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "text_encoder": (ClipConfig, TextTower),
    "image_encoder": (ClipConfig, VisionTower),
    "prior": (PriorPart, _network_of(Prior)),
    "text_proj": (TextProjectionConfig, TextProjection),
    "decoder": (DecoderPart, _network_of(UNet)),
    "super_res_first": (SuperResPart, _network_of(UNet)),
    "super_res_last": (SuperResPart, _network_of(UNet)),
}
# Without a prior or an image tower it draws from pictures or from text alone; without super-resolution, small ones.
OPTIONAL_PARTS = find_family("generator", "unclip").optional_parts


class EncodedPrompt(NamedTuple):
    """What CLIP makes of one text; the mask is true up to and including the end token."""

    states: Float[Tensor, "1 T E"]
    embedding: Float[Tensor, "1 K"]
    mask: Bool[Tensor, "1 T"]


@dataclass(frozen=True)
class UnclipModel:
    tokenizer: Tokenizer
    text_encoder: TextTower
    text_projection: TextProjection
    decoder: UNet
    decoder_diffusion: DiffusionConfig
    device: torch.device
    dtype: torch.dtype
    prior: Prior | None = None
    prior_diffusion: DiffusionConfig = DiffusionConfig()
    image_encoder: VisionTower | None = None
    # Of all steps but the last, and of the last.
    super_res: tuple[UNet, UNet] | None = None
    super_res_diffusion: DiffusionConfig = SUPER_RES_DIFFUSION
    uncond: EncodedPrompt = field(init=False)
    _programs: dict[nn.Module, RowNetwork] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        text, projection, decoder = self.text_encoder.config, self.text_projection.config, self.decoder.config
        pairs = [
            ("text_proj's embed_dim", projection.embed_dim, "text_encoder's embed_dim", text.embed_dim),
            ("text_proj's text_width", projection.text_width, "text_encoder's transformer_width", text.transformer_width),
            ("text_proj's context_dim", projection.context_dim, "the decoder's context_dim", decoder.context_dim),
            ("text_proj's time_embed_dim", projection.time_embed_dim, "the decoder's time_embed_dim", decoder.time_embed_dim),
            ("the decoder's in_channels", decoder.in_channels, "expected", 3),
            (
                "the decoder's out_channels", decoder.out_channels,
                "expected", _out_channels(self.decoder_diffusion),
            ),
        ]  # fmt: skip
        if self.prior is not None:
            prior = self.prior.config
            pairs += [
                ("the prior's embed_dim", prior.embed_dim, "text_encoder's embed_dim", text.embed_dim),
                ("the prior's embed_dim", prior.embed_dim, "text_encoder's transformer_width", text.transformer_width),
                ("the prior's context_length", prior.context_length, "text_encoder's", text.context_length),
            ]  # fmt: skip
        if self.image_encoder is not None:
            embed_dim = self.image_encoder.config.embed_dim
            pairs.append(("image_encoder's embed_dim", embed_dim, "text_encoder's embed_dim", text.embed_dim))
        for network in self.super_res or ():
            pairs += [
                ("super-resolution's in_channels", network.config.in_channels, "expected", 6),
                (
                    "super-resolution's out_channels", network.config.out_channels,
                    "expected", _out_channels(self.super_res_diffusion),
                ),
            ]  # fmt: skip
        for name, value, other_name, other in pairs:
            if value != other:
                raise ModelError(
                    f"{name} is {value}, {other_name} is {other}: these parts are of different models"
                )
        object.__setattr__(self, "uncond", self.encode_prompt(""))

    @property
    def image_size(self) -> int:
        """Side of its finished pictures."""
        network = self.super_res[0] if self.super_res else self.decoder
        return network.config.image_size

    @torch.inference_mode()
    def encode_prompt(self, prompt: str) -> EncodedPrompt:
        """Also of the empty text, which stands for no text."""
        tokens = torch.from_numpy(self.tokenizer.encode([prompt])).to(self.device)
        end = tokens.argmax(dim=1, keepdim=True)
        mask = torch.arange(tokens.shape[1], device=self.device) <= end
        encoded = self.text_encoder.encode_states(tokens)
        return EncodedPrompt(encoded.states, encoded.embedding, mask)

    @torch.inference_mode()
    def encode_picture(self, picture: Picture) -> Float[Tensor, "1 K"]:
        """CLIP's embedding, not normalised, of the square in the middle of the picture."""
        if self.image_encoder is None:
            raise ValueError("this unCLIP has no image tower")
        pixels = torch.from_numpy(crop_to_square(picture, self.image_encoder.config.image_size))
        images = rearrange(pixels, "h w c -> 1 c h w").to(self.device).float() / 255
        return self.image_encoder(normalize_image(images).to(self.dtype)).float()

    @torch.inference_mode()
    def predict_embeddings(
        self, x: Float[Tensor, "B K"], timesteps: Float[Tensor, " B"], prompts: Sequence[EncodedPrompt]
    ) -> Float[Tensor, "B K"]:
        """One forward of the prior: the scaled embeddings without noise."""
        if self.prior is None:
            raise ValueError("this unCLIP has no prior")
        states, embeddings, masks = (torch.cat(rows) for rows in zip(*prompts, strict=True))
        return self._run(self.prior, x.to(self.dtype), timesteps, embeddings, states, masks)

    @torch.inference_mode()
    def condition(self, image_embedding: Float[Tensor, "1 K"], prompt: EncodedPrompt) -> Conditioning:
        """The decoder's conditioning for one image."""
        embedding = image_embedding.to(self.dtype)
        return self.text_projection(embedding, prompt.embedding, prompt.states, prompt.mask)

    @property
    def uncond_embedding(self) -> Float[Tensor, "1 K"]:
        """What stands for a picture's embedding in rows without one."""
        return self.text_projection.learned_classifier_free_guidance_embeddings[None]

    @torch.inference_mode()
    def decode(
        self, x: Float[Tensor, "B 3 H W"], timesteps: Float[Tensor, " B"], rows: Sequence[Conditioning]
    ) -> Float[Tensor, "B O H W"]:
        """One forward of the decoder."""
        emb, context, mask = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        return self._run(self.decoder, self._pixels(x), timesteps, emb, Context(context, mask))

    @torch.inference_mode()
    def enlarge(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
        """To super-resolution's size, as it was trained: bicubic, with antialiasing."""
        size = (self.image_size, self.image_size)
        return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)

    @torch.inference_mode()
    def sharpen(
        self,
        x: Float[Tensor, "B 3 H W"],
        enlarged: Float[Tensor, "B 3 H W"],
        timesteps: Float[Tensor, " B"],
        *,
        is_last: bool,
    ) -> Float[Tensor, "B O H W"]:
        """One forward of super-resolution; the last step has a network of its own."""
        if self.super_res is None:
            raise ValueError("this unCLIP has no super-resolution")
        pixels = self._pixels(torch.cat([x, enlarged], dim=1))
        return self._run(self.super_res[is_last], pixels, timesteps)

    def _run(self, network: nn.Module, *arguments: Any) -> Tensor:
        """A forward in float32's result, as a captured graph where the device has those."""
        program = self._programs.setdefault(network, RowNetwork(network, self.device))
        return program(*arguments).float()

    def _pixels(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _out_channels(diffusion: DiffusionConfig) -> int:
    """Of a network that draws: a learned variance takes as many as the prediction."""
    return 6 if diffusion.variance == "learned_range" else 3


def crop_to_square(picture: Picture, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Bicubic, until the shorter edge is `size` pixels; then the middle, as CLIP's preprocessing has it."""
    height, width = picture.shape[:2]
    short = min(height, width)
    scaled = (int(size * width / short), int(size * height / short))
    image = Image.fromarray(picture).resize(scaled, Image.Resampling.BICUBIC)
    left, top = ((side - size) // 2 for side in scaled)
    return np.array(image.crop((left, top, left + size, top + size)))


def to_pictures(images: Float[Tensor, "B 3 H W"]) -> list[Picture]:
    """From [-1, 1]; what overshoots is cut."""
    levels = ((images + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return list(rearrange(levels, "b c h w -> b h w c").contiguous().cpu().numpy())


def load_model(folder: Path, *, device: str = "auto", dtype: str = "float32") -> UnclipModel:
    """Reads all parts that are there; raises ModelError for a folder that does not hold one whole unCLIP."""
    found = find_device(device)
    place = (found, find_dtype(dtype, found))

    def load(part: str) -> Any:
        if part in OPTIONAL_PARTS and not (folder / part / "model.safetensors").is_file():
            return None
        return load_part(folder / part, part, *place)

    def diffusion(part: str, default: DiffusionConfig) -> DiffusionConfig:
        if not (folder / part / "config.json").is_file():
            return default
        config: DiffusionConfig = parts.read_part_config(folder / part, NETWORKS[part][0]).diffusion
        return config

    text_encoder = load("text_encoder")
    tokenizer = read_clip_tokenizer(
        folder / "text_encoder",
        num_tokens=text_encoder.config.context_length,
        vocab_size=text_encoder.config.vocab_size,
    )
    if tokenizer.end_token != tokenizer.vocab_size - 1:
        raise ModelError(
            f"{folder / 'text_encoder'}: the tokenizer's end of text must have the highest id, "
            f"{tokenizer.vocab_size - 1}, got {tokenizer.end_token}: CLIP reads the text off there"
        )
    first = load("super_res_first")
    # A network that was not tuned for the last step makes that one, too.
    last = load("super_res_last") if first is not None else None
    return UnclipModel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        text_projection=load("text_proj"),
        decoder=load("decoder"),
        decoder_diffusion=diffusion("decoder", DECODER_DIFFUSION),
        device=place[0],
        dtype=place[1],
        prior=load("prior"),
        prior_diffusion=diffusion("prior", DiffusionConfig()),
        image_encoder=load("image_encoder"),
        super_res=None if first is None else (first, last or first),
        super_res_diffusion=diffusion("super_res_first", SUPER_RES_DIFFUSION),
    )


def load_part(
    part_folder: Path,
    part: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - an immutable value
    dtype: torch.dtype = torch.float32,
) -> Any:
    """One network of a model folder, ready for inference; raises ModelError."""
    return parts.load_network(part_folder, *NETWORKS[part], device, dtype)
