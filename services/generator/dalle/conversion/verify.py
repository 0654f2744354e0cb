"""Compares a loaded part with golden vectors of the reference: did the conversion make the right network?

The vectors are an .npz, or a folder with vectors.npz. Tolerances are for float32 against float32, scaled by the largest
entry where that is above 1: logits 1e-5, guided logits 1e-4, the VQGAN's pixels and vectors 1e-4; tokens are exact.
"""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike, NDArray

from services.errors import ModelError
from services.generator.dalle.model import load_dalle, load_vqgan
from services.generator.dalle.networks import dalle, vqgan
from services.generator.dalle.networks.dalle_parameters import DalleConfig, Params
from services.generator.dalle.networks.sampling import guide
from services.weights.model_folder import GoldenDifference

Vectors = Mapping[str, NDArray[np.generic]]

LOGITS_TOLERANCE = 1e-5
GUIDED_TOLERANCE = 1e-4
VQGAN_TOLERANCE = 1e-4


def compare(part_folder: Path, part: str, golden: Path) -> list[GoldenDifference]:
    """Runs the part as the service would load it on the vectors; raises ModelError if they do not fit it."""
    compare_part = {"dalle": _compare_dalle, "vqgan": _compare_vqgan}[part]
    vectors = _read_vectors(golden)
    try:
        return compare_part(part_folder, vectors)
    except KeyError as error:
        raise ModelError(f"{golden}: no array {error}: expected the golden vectors of a {part}") from None


def _compare_dalle(part_folder: Path, vectors: Vectors) -> list[GoldenDifference]:
    params, config = load_dalle(part_folder)
    encode, project_cross_attention, decode = (
        jax.jit(function, static_argnums=1)
        for function in (dalle.encode, dalle.project_cross_attention, dalle.decode)
    )
    differences, prompts, logits = [], [], []
    for suffix, logits_name in (("", "logits_cond"), ("_uncond", "logits_uncond")):
        mask = jnp.asarray(vectors["attention_mask" + suffix] != 0)
        hidden = encode(params, config, jnp.asarray(vectors["input_ids" + suffix]), mask)
        differences.append(_difference("encoder_hidden" + suffix, hidden, vectors, LOGITS_TOLERANCE))
        prompts.append(project_cross_attention(params, config, hidden, mask))
        logits.append(decode(params, config, jnp.asarray(vectors["decoder_input_ids"]), prompts[-1]))
        differences.append(_difference(logits_name, logits[-1], vectors, LOGITS_TOLERANCE))
    guided = guide(logits[0], logits[1], jnp.full(logits[0].shape[:-1], 10.0))
    differences.append(_difference("logits_guided_10", guided, vectors, GUIDED_TOLERANCE))
    for scale in (1.0, 10.0):
        image_tokens = greedy(params, config, prompts[0], prompts[1], guidance_scale=scale)
        differences.append(_difference(f"greedy_codes_only_cs{scale:.0f}", image_tokens, vectors, 0.0))
    return differences


def greedy(
    params: Params,
    config: DalleConfig,
    prompt: dalle.EncodedPrompt,
    uncond_prompt: dalle.EncodedPrompt,
    *,
    guidance_scale: float,
) -> Int[np.ndarray, "B S"]:
    """The likeliest code at each position, through the cached step; the start token comes first."""
    rows = len(prompt.text_mask)
    cache = dalle.empty_cache(config, 2 * rows, config.image_length)
    step = jax.jit(dalle.decode_step, static_argnums=1, donate_argnums=2)
    image_tokens = [np.full(rows, config.decoder_start_token_id)]
    for position in range(config.image_length):
        tokens = jnp.tile(jnp.asarray(image_tokens[-1]), 2)
        logits, cache = step(
            params, config, cache, tokens, jnp.full(2 * rows, position), [prompt, uncond_prompt]
        )
        cond, uncond = jnp.split(logits, 2)
        guided = guide(cond, uncond, jnp.full(rows, guidance_scale, float))
        image_tokens.append(np.asarray(guided[:, : config.num_codes].argmax(-1)))
    return np.stack(image_tokens, axis=1)


def _compare_vqgan(part_folder: Path, vectors: Vectors) -> list[GoldenDifference]:
    params, _ = load_vqgan(part_folder)
    encode, decode = jax.jit(vqgan.encode), jax.jit(vqgan.decode)
    codes = vqgan.look_up(params, jnp.asarray(vectors["indices"]))
    pixels = decode(params, codes)
    encoded = encode(params, jnp.asarray(vectors["image_in"]))
    image_tokens = vqgan.quantize(params, encoded)
    quantized = vqgan.look_up(params, image_tokens)
    return [
        _difference("codebook_entries", codes, vectors, 0.0),
        _difference("pixels_raw", pixels, vectors, VQGAN_TOLERANCE),
        # Truncation to whole numbers may turn the last bit of a float into a step of one.
        _difference("pixels_uint8", vqgan.to_uint8(pixels), vectors, 1.0),
        _difference("encoder_pre_quant", encoded, vectors, VQGAN_TOLERANCE),
        _difference("encoded_indices", image_tokens, vectors, 0.0),
        _difference("quantized", quantized, vectors, 0.0),
        _difference("reconstruction_raw", decode(params, quantized), vectors, VQGAN_TOLERANCE),
    ]


def _difference(name: str, found: ArrayLike, vectors: Vectors, tolerance: float) -> GoldenDifference:
    expected = np.asarray(vectors[name], np.float64)
    got = np.asarray(found, np.float64)
    if got.shape != expected.shape:
        raise ModelError(
            f"{name}: the vectors have shape {expected.shape}, this network's is {got.shape}: vectors of another network"
        )
    if expected.dtype.kind == "f" and tolerance < 1:
        tolerance *= max(1.0, float(np.abs(expected).max()))
    return GoldenDifference(name, float(np.abs(got - expected).max()), tolerance)


def _read_vectors(golden: Path) -> dict[str, NDArray[np.generic]]:
    path = golden / "vectors.npz" if golden.is_dir() else golden
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: expected golden vectors, an .npz or a folder with vectors.npz"
        ) from None
    except (BadZipFile, EOFError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: expected an .npz of arrays, got {error}") from None
