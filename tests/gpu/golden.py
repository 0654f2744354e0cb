"""Golden vectors on a device and in a precision: how far each network is from the reference, of the largest value.

TOLERANCES are twice what CPUs were seen to differ by in float16 and bfloat16, rounded up; float32 is held closer by
the tests of each stage.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
# A picture's levels, of 255.
VQGAN_LEVELS = 1


def generator_errors(
    dtype: str, names: tuple[str, ...] = ("mini_scan", "mega_scan")
) -> Iterator[tuple[str, float]]:
    """On the device that JAX is set up for."""
    import jax
    import jax.numpy as jnp

    from services.generator.dalle.conversion.convert import convert
    from services.generator.dalle.model import decode_pixels, load_dalle, load_vqgan
    from services.generator.dalle.networks import dalle, vqgan

    @jax.jit
    def logits_of(
        params: dict[str, object], ids: jax.Array, mask: jax.Array, image_tokens: jax.Array
    ) -> jax.Array:
        hidden = dalle.encode(params, config, ids, mask)
        prompt = dalle.project_cross_attention(params, config, hidden, mask)
        return dalle.decode(params, config, image_tokens, prompt)

    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            convert(GOLDEN / "generator" / name, Path(folder) / name, "dalle")
            params, config = load_dalle(Path(folder) / name, dtype)
            vectors = np.load(GOLDEN / "generator" / name / "vectors.npz")
            logits_of.clear_cache()
            ids, tokens = jnp.asarray(vectors["input_ids"]), jnp.asarray(vectors["decoder_input_ids"])
            found = logits_of(params, ids, jnp.asarray(vectors["attention_mask"] != 0), tokens)
            yield f"{name} logits", relative(np.asarray(found), vectors["logits_cond"])
        convert(GOLDEN / "generator" / "vqgan_tiny", Path(folder) / "vqgan", "vqgan")
        params, _ = load_vqgan(Path(folder) / "vqgan")
        if dtype != "float32":
            params = vqgan.halve(params)
        vectors = np.load(GOLDEN / "generator" / "vqgan_tiny" / "vectors.npz")
        pixels = np.asarray(decode_pixels(params, jnp.asarray(vectors["indices"]))).astype(int)
        levels = np.abs(pixels - vectors["pixels_uint8"]).max()
        # As an error, so that more than VQGAN_LEVELS are too much.
        yield "vqgan, levels", 0.0 if levels <= VQGAN_LEVELS else float(levels)


def refiner_errors(device: str, dtype: str) -> Iterator[tuple[str, float]]:
    import torch

    from services.pytorch.device import find_device, find_dtype
    from services.refiner.conversion.convert import convert
    from services.refiner.model import load_part

    place = find_device(device), find_dtype(dtype)
    recorded = GOLDEN / "refiner"

    def to(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array).to(device)
        return tensor.to(place[1]) if tensor.is_floating_point() else tensor

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for part, file in (("unet", "unet_tiny"), ("autoencoder", "vae_tiny"), ("bert", "bert_tiny")):
            convert(recorded / f"{file}.safetensors", Path(folder) / part, part)
            network = load_part(Path(folder) / part, part, *place)
            arrays = np.load(recorded / f"{file}.npz")
            if part == "unet":
                timesteps = torch.from_numpy(arrays["timesteps"]).float().to(device)
                inputs = (to(arrays["x"]), timesteps, to(arrays["context"]), to(arrays["clip_embed"]))
                found, expected = network(*inputs), arrays["out_clip"]
            elif part == "autoencoder":
                found, expected = network.decode(to(arrays["z"])), arrays["decoded"]
            else:
                found, expected = network(to(arrays["tokens"])), arrays["out"]
            yield part, relative(found.float().cpu().numpy(), expected)


def upscaler_errors(device: str, dtype: str) -> Iterator[tuple[str, float]]:
    import torch

    from services.pytorch.device import find_device
    from services.upscaler.model import fill, place
    from services.upscaler.networks.swinir import SwinIRConfig

    folder = GOLDEN / "upscaler"
    facts = json.loads((folder / "golden.json").read_text())
    for name, described in facts["configs"].items():
        weights = load_file(folder / f"{name}.safetensors")
        weights = {key: w for key, w in weights.items() if not key.endswith(("attn_mask", "position_index"))}
        config = SwinIRConfig.from_json(described["config"])
        network = place(fill(config, weights, name), find_device(device), dtype)
        vectors = load_file(folder / f"{name}.vectors.safetensors")
        case = next(
            one["case"] for one in facts["cases"] if one["config"] == name and one["kind"] == "forward"
        )
        pixels = vectors[f"{case}.in_u8"].to(device).float() / 255
        with torch.inference_mode():
            found = network(pixels).cpu().numpy()
        yield name, relative(found, vectors[f"{case}.out"].numpy().reshape(found.shape))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
