"""A generator's model folder, loaded: both networks' parameters, the tokenizer, the settings it likes best."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, UInt8

from services.errors import ModelError
from services.generator.dalle.device import return_freed_memory
from services.generator.dalle.networks import dalle_parameters, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig, Params
from services.generator.dalle.networks.sampling import SamplingDefaults
from services.generator.dalle.parameters import load_parameters
from services.generator.dalle.text.normalizer import WORD_LIST_NAME, TextNormalizer, read_word_costs
from services.generator.dalle.text.tokenizer import TextTokens, Tokenizer
from services.weights.model_folder import read_config

log = logging.getLogger(__name__)
NUM_COMPARED_PICTURES = 2


@dataclass(frozen=True)
class Model:
    """What it takes to turn prompts into pictures."""

    dalle_params: Params
    dalle_config: DalleConfig
    vqgan_params: vqgan.Params
    vqgan_config: vqgan.VqganConfig
    tokenizer: Tokenizer
    normalizer: TextNormalizer | None
    sampling: SamplingDefaults

    def text_tokens(self, prompt: str) -> TextTokens:
        """Normalizes, if the model was trained so, and tokenizes a prompt."""
        return self.tokenizer(self._normalized(prompt))

    def num_text_tokens(self, prompt: str) -> int:
        """How many tokens a prompt has, start and end included, whether or not the model reads them."""
        return self.tokenizer.count(self._normalized(prompt))

    def _normalized(self, prompt: str) -> str:
        return self.normalizer(prompt) if self.normalizer else prompt


def load_model(folder: Path, dtype: str = "float32") -> Model:
    """Raises ModelError when a part's files are missing, damaged or do not fit each other.

    `dtype` is what the transformer's weights, keys and values are kept and multiplied in. With half of float32's bits,
    the VQGAN takes half of them, too, where its pictures stay the same within a level.
    """
    with return_freed_memory():
        dalle_params, config = load_dalle(folder / "dalle", dtype)
        vqgan_params, vqgan_config = load_vqgan(folder / "vqgan")
    if vqgan_config.tokens_per_side**2 != config.image_length or vqgan_config.n_embed < config.num_codes:
        raise ModelError(
            f"{folder}: the dalle writes {config.image_length} tokens of {config.num_codes} codes, the vqgan reads "
            f"{vqgan_config.tokens_per_side**2} of {vqgan_config.n_embed}: expected parts that were trained together"
        )
    # What is no code must never be drawn, so its logits need not be computed.
    weight = dalle_params["lm_head"]["weight"]
    dalle_params["lm_head"]["weight"] = weight[: config.num_codes]
    # A CPU convolves no faster in float16.
    if dtype != "float32" and jax.default_backend() != "cpu":
        vqgan_params = halve_if_same(vqgan_params, vqgan_config)
    return Model(
        dalle_params,
        config,
        vqgan_params,
        vqgan_config,
        Tokenizer(
            folder / "dalle", max_text_length=config.max_text_length, vocab_size=config.encoder_vocab_size
        ),
        _normalizer(folder / "dalle") if config.normalize_text else None,
        SamplingDefaults.from_json(read_config(folder / "dalle")),
    )


def load_dalle(part_folder: Path, dtype: str = "float32") -> tuple[Params, DalleConfig]:
    """Raises ModelError when the part's files are missing, damaged or do not fit each other."""
    raw = read_config(part_folder)
    config = DalleConfig.from_json(raw)
    shapes = dalle_parameters.parameter_shapes(config)
    # Published float16 files are added in float16. The built-in model was trained in float32, and only stored in half.
    as_stored = () if raw.get("embedding_dtype") == "float32" else ("embed_tokens", "embed_positions")
    loaded = load_parameters(part_folder, shapes, as_stored=as_stored, kernel_dtype=jnp.dtype(dtype))
    params = dalle_parameters.prepare(loaded)
    return to_device(params), config


def load_vqgan(part_folder: Path) -> tuple[vqgan.Params, vqgan.VqganConfig]:
    """Raises ModelError when the part's files are missing, damaged or do not fit each other."""
    config = vqgan.VqganConfig.from_json(read_config(part_folder))
    params = vqgan.group_norms(load_parameters(part_folder, vqgan.parameter_shapes(config)), config)
    if jax.default_backend() == "cpu":
        params = vqgan.apply_winograd(params, config)
    return to_device(params), config


def halve_if_same(params: vqgan.Params, config: vqgan.VqganConfig) -> vqgan.Params:
    """The VQGAN with float16 kernels, if it draws pictures of random tokens the same within one level; else as it is."""
    half = vqgan.halve(params)
    shape = NUM_COMPARED_PICTURES, config.tokens_per_side**2
    tokens = jax.device_put(np.random.default_rng(0).integers(0, config.n_embed, shape).astype(np.int32))
    pictures, others = (np.asarray(jax.device_get(decode_pixels(some, tokens))) for some in (params, half))
    difference = int(np.abs(pictures.astype(int) - others).max())
    is_same = difference <= 1
    log.info("VQGAN in %s: %d levels", "float16" if is_same else "float32, float16 differs", difference)
    return half if is_same else params


@jax.jit
def decode_pixels(
    params: vqgan.Params, image_tokens: Int[Array, "B tokens"]
) -> UInt8[Array, "B height width 3"]:
    return vqgan.to_uint8(vqgan.decode(params, vqgan.look_up(params, image_tokens)))


def to_device(params: Any) -> Any:
    """Puts numpy arrays on the device where they stand, one after another: a copy of all would be gigabytes more."""
    for key in range(len(params)) if isinstance(params, list) else list(params):
        is_leaf = isinstance(params[key], np.ndarray)
        params[key] = jnp.asarray(params[key]) if is_leaf else to_device(params[key])
    return params


def _normalizer(part_folder: Path) -> TextNormalizer:
    path = part_folder / WORD_LIST_NAME
    return TextNormalizer(read_word_costs(path) if path.is_file() else None)
