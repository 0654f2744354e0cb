"""Runs a part of a model folder, as the service loads it, on recorded vectors of a reference implementation.

Arrays whose inputs belong to another variant of a network (with CLIP or without, inpainting or not) are left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.errors import ModelError
from services.pytorch.adm import timestep_embedding
from services.pytorch.clip import Clip
from services.refiner.model import load_part
from services.refiner.networks.autoencoder import Autoencoder
from services.refiner.networks.diffusion import guide
from services.refiner.networks.text_encoder import TextEncoder
from services.refiner.networks.unet import UNet
from services.refiner.text.tokenizer import read_tokenizer
from services.weights.model_folder import GoldenDifference

# Of an array's largest value. The vectors are float32, and two float32 implementations of one network were seen to
# differ by up to 3e-6 of it: only the order of sums.
RELATIVE_TOLERANCE = 1e-5
# The vectors of each part in a folder that holds all of them; the first is enough.
FILES = {
    "bert": ("bert_tiny.npz", "bert_tokenizer.json"),
    "clip": ("clip_text_tiny.npz", "clip_tokenizer.json"),
    "unet": ("unet_tiny.npz", "guidance.npz"),
    "autoencoder": ("vae_tiny.npz",),
}
UNET_ACTIVATIONS = {
    "act_in0": "input_blocks.0",
    "act_in1": "input_blocks.1",
    "act_in3": "input_blocks.3",
    "act_in4": "input_blocks.4",
    "act_in11": "input_blocks.11",
    "act_mid": "middle_block",
    "act_out2": "output_blocks.2",
    "act_out5": "output_blocks.5",
}

Arrays = Mapping[str, Tensor]


def compare(part_folder: Path, part: str, golden: Path) -> list[GoldenDifference]:
    """The largest difference of each array; raises ModelError when the vectors are not for this part."""
    if part not in FILES:
        raise ModelError(f"no part '{part}' in a refiner: expected one of {', '.join(FILES)}")
    files = [golden]
    if golden.is_dir():
        files = [golden / name for name in FILES[part] if (golden / name).is_file()]
        if part in ("bert", "clip") and not any(
            (part_folder / name).exists() for name in ("vocab.txt", "vocab.json", "tokenizer.json")
        ):
            files = [file for file in files if file.suffix != ".json"]
    differences = [difference for file in files for difference in _compare_file(part_folder, part, file)]
    if not differences:
        raise ModelError(
            f"{golden} holds no vectors of a {part}: expected {' or '.join(FILES[part])} or its like"
        )
    return differences


def _compare_file(part_folder: Path, part: str, file: Path) -> list[GoldenDifference]:
    if file.suffix == ".json":
        return [_compare_tokens(part_folder, part, file)]
    arrays = _read_arrays(file)
    if part == "unet" and "raw_model_out" in arrays:
        # Its inputs are those of the other file.
        arrays = {**_read_arrays(file.parent / "unet_tiny.npz"), **arrays}
        run: Callable[[Any, Arrays], Iterator[tuple[str, Tensor]]] = _run_guidance
    else:
        run = RUN[part]
    network = load_part(part_folder, part)
    try:
        with torch.inference_mode():
            computed = dict(run(network, arrays))
    except (KeyError, RuntimeError, IndexError) as error:
        raise ModelError(
            f"{file} does not fit {part_folder}: {error}; expected vectors of a {part} of the same shapes"
        ) from None
    return [_difference(name, value, arrays[name]) for name, value in computed.items()]


def _difference(name: str, actual: Tensor, expected: Tensor) -> GoldenDifference:
    if actual.shape != expected.shape:
        raise ModelError(f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    # NaN on either side must not pass for equality.
    largest = float((actual - expected).abs().nan_to_num(nan=torch.inf).max())
    return GoldenDifference(name, largest, RELATIVE_TOLERANCE * float(expected.abs().max()))


def _run_bert(network: TextEncoder, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    yield "out", network(arrays["tokens"])


def _run_clip(network: Clip, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    yield "out", network.encode_text(arrays["tokens"])


def _run_autoencoder(network: Autoencoder, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    posterior = network.encode(arrays["image"])
    yield "mean", posterior.mean
    yield "logvar", posterior.logvar
    yield "sample", posterior.sample(arrays["sample_noise"])
    yield "decoded", network.decode(arrays["z"])


def _run_unet(network: UNet, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    inputs = (arrays["x"], arrays["timesteps"], arrays["context"])
    clip_embed = arrays["clip_embed"]
    yield "t_emb", timestep_embedding(arrays["timesteps"], network.config.model_channels)
    yield "emb_noclip", network.embed(arrays["timesteps"], None)
    if network.clip_proj is not None:
        yield "emb_clip", network.embed(arrays["timesteps"], clip_embed)
    if network.config.image_channels:
        yield "out_inpaint", network(*inputs, clip_embed, arrays["image_embed"])
        return
    yield "out_noclip", network(*inputs)
    if network.clip_proj is None:
        return
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(layer).register_forward_hook(partial(_keep_output, seen, name))
        for name, layer in UNET_ACTIVATIONS.items()
    ]
    yield "out_clip", network(*inputs, clip_embed)
    for hook in hooks:
        hook.remove()
    yield from seen.items()
    rows = (arrays[name][:2] for name in ("timesteps", "context", "clip_embed"))
    yield "out_rect", network(arrays["x_rect"], *rows)


def _run_guidance(network: UNet, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
    """Recorded with the same two latents in both halves of the batch, with CLIP."""
    latents = arrays["x"][:2].repeat(2, 1, 1, 1)
    timesteps = arrays["timestep"].float().expand(4)
    noise = network(latents, timesteps, arrays["context"], arrays["clip_embed"])
    yield "raw_model_out", noise
    cond, uncond = noise.chunk(2)
    scale = arrays["scale"].float().expand(2)
    yield "first_half_by_per_channel_scale", guide(cond, uncond, scale, network.config.guided_channels)


RUN: dict[str, Callable[[Any, Arrays], Iterator[tuple[str, Tensor]]]] = {
    "bert": _run_bert,
    "clip": _run_clip,
    "unet": _run_unet,
    "autoencoder": _run_autoencoder,
}


def _keep_output(seen: dict[str, Tensor], name: str, _module: Any, _inputs: Any, output: Tensor) -> None:
    seen[name] = output[:1]  # the first row is what was recorded


def _compare_tokens(part_folder: Path, part: str, file: Path) -> GoldenDifference:
    """Token ids of the recorded texts; one that differs anywhere is beyond the tolerance."""
    try:
        texts = json.loads(file.read_text("utf-8"))
        expected = np.array([text["ids"] for text in texts])
        prompts = [text["text"] for text in texts]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: expected texts with their token ids: {error!r}") from None
    network = load_part(part_folder, part)
    vocab_size = network.config.vocab_size
    tokenizer = read_tokenizer(part_folder, num_tokens=expected.shape[1], vocab_size=vocab_size)
    return GoldenDifference(file.stem, float(np.abs(tokenizer.encode(prompts) - expected).max()), 0.0)


def _read_arrays(file: Path) -> Arrays:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {
                name: torch.from_numpy(array)
                for name in arrays.files
                if (array := np.asarray(arrays[name])).dtype.kind in "fiu"
            }
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: expected a NumPy .npz file of vectors: {error}") from None
