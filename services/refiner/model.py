"""A refiner's model: four networks and two tokenizers out of a model folder, and what they do together.

Pictures are uint8 (H, W, 3), latents float32 with the spread that the diffusion knows, whatever the networks
compute in.
Dimension key: B rows, T tokens, E context width, K CLIP width, Z latent channels, h w latent pixels,
S side of the model's pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from services.errors import ModelError
from services.images.codec import Picture
from services.images.fit import Fit, fit_picture
from services.pytorch import parts
from services.pytorch.clip import Clip, ClipConfig
from services.pytorch.clip_tokenizer import Tokenizer
from services.pytorch.device import find_device, find_dtype, is_faster_with_winograd
from services.pytorch.winograd import Chooser, use_winograd
from services.refiner.networks.autoencoder import Autoencoder, AutoencoderConfig
from services.refiner.networks.text_encoder import TextEncoder, TextEncoderConfig
from services.refiner.networks.unet import UNet, UNetConfig
from services.refiner.text.tokenizer import read_tokenizer

Config = TextEncoderConfig | ClipConfig | UNetConfig | AutoencoderConfig
NETWORKS: dict[str, tuple[type[Any], type[Any]]] = {
    "bert": (TextEncoderConfig, TextEncoder),
    "clip": (ClipConfig, Clip),
    "unet": (UNetConfig, UNet),
    "autoencoder": (AutoencoderConfig, Autoencoder),
}
# Decoding needs much more memory a picture than a step does.
MAX_DECODED_TOGETHER = 8


@dataclass(frozen=True)
class Conditioning:
    """The UNet's conditioning for one prompt."""

    context: Float[Tensor, "1 T E"]
    clip_embed: Float[Tensor, "1 K"] | None


@dataclass(frozen=True)
class RefinerModel:
    text_encoder: TextEncoder
    text_tokenizer: Tokenizer
    clip: Clip
    clip_tokenizer: Tokenizer
    unet: UNet
    autoencoder: Autoencoder
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        unet, clip = self.unet.config, self.clip.config
        pairs = [
            ("the UNet's context_dim", unet.context_dim, "bert's n_embed", self.text_encoder.config.n_embed),
            ("the UNet's out_channels", unet.out_channels, "the autoencoder's embed_dim", self.autoencoder.config.embed_dim),
        ]  # fmt: skip
        if unet.clip_embed_dim is not None:
            pairs.append(
                ("the UNet's clip_embed_dim", unet.clip_embed_dim, "clip's embed_dim", clip.embed_dim)
            )
        if unet.image_channels:
            pairs.append(
                ("the UNet's image_channels", unet.image_channels, "its out_channels", unet.out_channels)
            )
        for name, value, other_name, other in pairs:
            if value != other:
                raise ModelError(
                    f"{name} is {value}, {other_name} is {other}: these parts are of different models"
                )

    @property
    def image_size(self) -> int:
        return self.autoencoder.config.image_size

    @property
    def downsampling(self) -> int:
        """The side of a latent in pixels."""
        return self.autoencoder.config.downsampling

    @property
    def is_trained_to_inpaint(self) -> bool:
        """Whether the UNet is shown what is kept of a picture; any other is made to keep it from outside."""
        return self.unet.config.image_channels > 0

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.autoencoder.config.latent_size
        return (self.unet.config.out_channels, size, size)

    @torch.inference_mode()
    def encode_prompt(self, prompt: str) -> Conditioning:
        context = self.text_encoder(self._tokens(self.text_tokenizer, prompt))
        if self.unet.config.clip_embed_dim is None:
            return Conditioning(context, None)
        return Conditioning(context, self.clip.encode_text(self._tokens(self.clip_tokenizer, prompt)))

    @torch.inference_mode()
    def encode_image(self, image: Picture, noise: Float[np.ndarray, "Z h w"]) -> Float[Tensor, "Z h w"]:
        """One sample of the latents of a picture of the model's size; `noise` picks the sample."""
        pixels = torch.from_numpy(image).to(self.device).to(self.dtype) / 127.5 - 1
        posterior = self.autoencoder.encode(rearrange(pixels, "h w c -> 1 c h w"))
        sample = posterior.sample(torch.from_numpy(noise).to(self.device, self.dtype)[None])
        return self.autoencoder.to_diffusion(sample)[0].float()

    @torch.inference_mode()
    def predict_noise(
        self,
        latents: Float[Tensor, "B Z h w"],
        timesteps: Float[Tensor, " B"],
        context: Float[Tensor, "B T E"],
        clip_embed: Float[Tensor, "B K"] | None,
        image_embed: Float[Tensor, "B Z h w"] | None = None,
    ) -> Float[Tensor, "B Z h w"]:
        """`image_embed` is for a network that is trained to inpaint: latents that are kept, zero elsewhere."""
        x = latents.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if image_embed is not None:
            image_embed = image_embed.to(self.dtype)
        return self.unet(x, timesteps, context, clip_embed, image_embed).float()

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "B Z h w"]) -> list[Picture]:
        pictures: list[Picture] = []
        for part in torch.split(latents, MAX_DECODED_TOGETHER):
            z = self.autoencoder.from_diffusion(part).to(self.dtype)
            images = self.autoencoder.decode(z.contiguous(memory_format=torch.channels_last)).float()
            levels = ((images + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
            pictures += list(rearrange(levels, "b c h w -> b h w c").contiguous().cpu().numpy())
        return pictures

    def resize(self, image: Picture, how: Fit = "crop") -> UInt8[np.ndarray, "S S 3"]:
        """To the model's size; of another aspect ratio the middle is kept, or white bars are added (GLID-3-xl squeezes)."""
        return fit_picture(image, self.image_size, self.image_size, how)

    def _tokens(self, tokenizer: Tokenizer, prompt: str) -> Tensor:
        return torch.from_numpy(tokenizer.encode([prompt])).to(self.device)


def load_model(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    choices: Chooser | None = None,
    num_slots: int = 1,
) -> RefinerModel:
    """Reads all four parts; raises ModelError for a folder that does not hold one whole refiner.

    On a CPU `choices` measures which convolutions are faster in another way, for a step of one slot and of all.
    """
    found = find_device(device)
    place = (found, find_dtype(dtype, found))
    text_encoder = load_part(folder / "bert", "bert", *place)
    clip = load_part(folder / "clip", "clip", *place)
    clip_tokenizer = read_tokenizer(
        folder / "clip", num_tokens=clip.config.context_length, vocab_size=clip.config.vocab_size
    )
    if clip_tokenizer.end_token != clip_tokenizer.vocab_size - 1:
        raise ModelError(
            f"{folder / 'clip'}: the tokenizer's end of text must have the highest id, "
            f"{clip_tokenizer.vocab_size - 1}, got {clip_tokenizer.end_token}: CLIP reads the text off there"
        )
    unet = load_part(folder / "unet", "unet", *place)
    autoencoder = load_part(folder / "autoencoder", "autoencoder", *place)
    if is_faster_with_winograd(place[0]):
        # With the prompt and without.
        rows = sorted({2, 2 * num_slots})
        use_winograd(unet, choices=choices, sizes=_input_sizes(unet, autoencoder), num_rows=rows)
    return RefinerModel(
        text_encoder=text_encoder,
        text_tokenizer=read_tokenizer(
            folder / "bert",
            num_tokens=text_encoder.config.max_seq_len,
            vocab_size=text_encoder.config.vocab_size,
        ),
        clip=clip,
        clip_tokenizer=clip_tokenizer,
        unet=unet,
        autoencoder=autoencoder,
        device=place[0],
        dtype=place[1],
    )


def _input_sizes(unet: UNet, autoencoder: Autoencoder) -> dict[nn.Module, tuple[int, int]]:
    """Height and width of what each convolution of the UNet is given, without computing anything."""
    config, side = unet.config, autoencoder.config.latent_size
    with torch.device("meta"):
        shapes = UNet(config)
        inputs = torch.empty(1, config.out_channels, side, side), torch.empty(1)
        context = torch.empty(1, 1, config.context_dim)
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            sizes[name] = (given[0].shape[-2], given[0].shape[-1])

        return hook

    for name, module in shapes.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(remember(name))
    with torch.inference_mode():
        shapes(*inputs, context)
    modules = dict(unet.named_modules())
    return {modules[name]: size for name, size in sizes.items()}


def load_part(
    part_folder: Path,
    part: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - an immutable value
    dtype: torch.dtype = torch.float32,
) -> Any:
    """One network of a model folder, ready for inference; raises ModelError."""
    return parts.load_network(part_folder, *NETWORKS[part], device, dtype)


def empty_network(part: str, config: Config, where: Path) -> nn.Module:
    """The network without memory for its parameters; raises ModelError for an impossible configuration."""
    return parts.empty_network(NETWORKS[part][1], config, where, part)
