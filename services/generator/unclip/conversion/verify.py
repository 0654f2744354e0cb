"""Runs a part of a model folder, as the service loads it, on recorded vectors of a reference implementation.

The vectors of a case are a .safetensors file with cases.json beside it, which has its timesteps and guidance; a part
is compared on every case that has its vectors. Networks are held to 1e-4, and so is each step from its recorded start
and the recorded answer of the network: the first steps magnify its rounding thousandfold.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from services.errors import ModelError
from services.generator.unclip.model import NETWORKS, load_part
from services.generator.unclip.networks.text_projection import TextProjection
from services.generator.unclip.networks.unet import Context, UNet
from services.generator.unclip.schedule import DiffusionConfig, advance, step_weights
from services.pytorch.parts import read_part_config
from services.weights.model_folder import GoldenDifference

TOLERANCE = 1e-4

Arrays = Mapping[str, Tensor]
Found = Iterator[tuple[str, Tensor, Tensor]]  # name, what is computed, what was recorded


def compare(part_folder: Path, part: str, golden: Path) -> list[GoldenDifference]:
    """The largest difference of each array; raises ModelError when the vectors are not for this part."""
    if part not in NETWORKS:
        raise ModelError(f"no part '{part}' in an unCLIP: expected one of {', '.join(NETWORKS)}")
    files = sorted(golden.glob("*.safetensors")) if golden.is_dir() else [golden]
    network = load_part(part_folder, part)
    diffusion = getattr(read_part_config(part_folder, NETWORKS[part][0]), "diffusion", None)
    differences = []
    for file in files:
        arrays, case = _read(file)
        try:
            with torch.inference_mode():
                found = list(_RUN[part](network, diffusion, arrays, case, part_folder))
        except (KeyError, RuntimeError, IndexError, ValueError) as error:
            raise ModelError(
                f"{file} does not fit {part_folder}: {error}; expected vectors of a {part} of the same shapes"
            ) from None
        differences += [_difference(f"{file.stem}: {name}", mine, recorded) for name, mine, recorded in found]
    if not differences:
        raise ModelError(f"{golden} holds no vectors of a {part}: expected .safetensors files of cases")
    return differences


def _difference(name: str, actual: Tensor, expected: Tensor) -> GoldenDifference:
    if actual.shape != expected.shape:
        raise ModelError(f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    # NaN on either side must not pass for equality.
    largest = float((actual - expected).abs().nan_to_num(nan=torch.inf).max())
    return GoldenDifference(name, largest, TOLERANCE)


def _read(file: Path) -> tuple[Arrays, dict[str, Any]]:
    try:
        arrays = {name: t.float() if t.is_floating_point() else t for name, t in load_file(file).items()}
        case = json.loads((file.parent / "cases.json").read_text("utf-8"))["cases"][file.stem]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{file}: expected a .safetensors file of vectors, with its case in cases.json beside it: {error!r}"
        ) from None
    return arrays, case


def _text_encoder(network: Any, _d: Any, arrays: Arrays, _case: dict[str, Any], _folder: Path) -> Found:
    states, embedding = network.encode_states(arrays["input_ids"].long())
    yield "text_embeds", embedding, arrays["text.text_embeds"]
    yield "last_hidden_state", states, arrays["text.last_hidden_state"]


def _image_encoder(network: Any, _d: Any, arrays: Arrays, _case: dict[str, Any], _folder: Path) -> Found:
    if "pixel_values" in arrays:
        found = network(arrays["pixel_values"])
        yield "image_embeds", found, arrays["image_embeds"][: len(found)]


def _text_projection(
    network: TextProjection, _d: Any, arrays: Arrays, case: dict[str, Any], _folder: Path
) -> Found:
    embedding = arrays.get("image_embedding", arrays.get("image_embeds"))
    if embedding is None:
        return
    count = len(arrays["decoder.initial"])
    is_told = [embedding.repeat_interleave(count // len(embedding), 0)]
    if len(arrays["text_proj.class_labels"]) > count:
        is_told.insert(0, network.learned_classifier_free_guidance_embeddings.expand(count, -1))
    text, states, mask = _text_rows(arrays, count, is_guided=len(is_told) == 2)
    told = network(torch.cat(is_told), text, states, mask)
    yield "class_labels", told.emb, arrays["text_proj.class_labels"]
    yield "encoder_hidden_states", told.context, arrays["text_proj.encoder_hidden_states"]


def _prior(
    network: Any, diffusion: DiffusionConfig, arrays: Arrays, case: dict[str, Any], _folder: Path
) -> Found:
    if "prior.initial" not in arrays:
        return
    count = len(arrays["prior.initial"])
    is_guided = len(arrays["prior.0.output"]) > count
    text, states, mask = _text_rows(arrays, count, is_guided=is_guided)

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        return network(x, timesteps, text, states, mask)

    yield from _steps("prior", predict, diffusion, arrays, case, scale=_scale(case, 0), is_guided=is_guided)
    last = arrays[f"prior.{len(case['prior.timesteps']) - 1}.prev"]
    yield "image_embedding", network.unscale(last), arrays["image_embedding"]


def _decoder(
    network: UNet, diffusion: DiffusionConfig, arrays: Arrays, case: dict[str, Any], _folder: Path
) -> Found:
    count = len(arrays["decoder.initial"])
    context = arrays["text_proj.encoder_hidden_states"]
    is_guided = len(context) > count
    _, _, text_mask = _text_rows(arrays, count, is_guided=is_guided)
    extra = context.shape[1] - text_mask.shape[1]
    mask = torch.nn.functional.pad(text_mask, (extra, 0), value=True)

    def predict(x: Tensor, timesteps: Tensor) -> Tensor:
        return network(x, timesteps, arrays["text_proj.class_labels"], Context(context, mask))

    yield from _steps("decoder", predict, diffusion, arrays, case, scale=_scale(case, 1), is_guided=is_guided)


def _super_res(
    network: UNet, diffusion: DiffusionConfig, arrays: Arrays, case: dict[str, Any], part_folder: Path
) -> Found:
    """Where nothing was recorded between the first and the last step, the last network needs the first one's answers."""
    num_steps = len(case["super_res.timesteps"])
    is_first = part_folder.name == "super_res_first"
    first = network if is_first else load_part(part_folder.with_name("super_res_first"), "super_res_first")
    x = arrays["super_res.initial"]
    schedule = step_weights(num_steps, diffusion.num_train_timesteps)
    for step, weights in enumerate(schedule[: 1 if is_first else num_steps]):
        timesteps = torch.full((len(x),), float(weights.timestep))
        told = torch.cat([x, arrays["upscaled"]], dim=1)
        output = (network if weights.is_last else first)(told, timesteps)
        noise = arrays.get(f"super_res.{step}.noise", torch.zeros_like(x))
        recorded = arrays.get(f"super_res.{step}.output", output)
        x, _ = advance(x, recorded, noise, [weights] * len(x), diffusion)
        if is_first or weights.is_last:
            yield f"{step}.output", output, recorded
            yield f"{step}.prev", x, arrays[f"super_res.{step}.prev"]
        x = arrays.get(f"super_res.{step}.prev", x)


def _steps(
    name: str,
    predict: Callable[[Tensor, Tensor], Tensor],
    diffusion: DiffusionConfig,
    arrays: Arrays,
    case: dict[str, Any],
    *,
    scale: float,
    is_guided: bool,
) -> Found:
    """Each step from its recorded start: the network's output, and the next state."""
    x = arrays[f"{name}.initial"]
    weights = step_weights(len(case[f"{name}.timesteps"]), diffusion.num_train_timesteps)
    for i, step in enumerate(weights):
        rows = torch.cat([x, x]) if is_guided else x
        output = predict(rows, torch.full((len(rows),), float(step.timestep)))
        recorded = arrays[f"{name}.{i}.output"]
        yield f"{i}.output", output, recorded
        output = recorded
        if is_guided:  # recorded with the unconditional rows first
            uncond, cond = output.chunk(2)
            channels = x.shape[1]
            guided = uncond[:, :channels] + scale * (cond - uncond)[:, :channels]
            output = torch.cat([guided, cond[:, channels:]], dim=1)
        noise = arrays.get(f"{name}.{i}.noise", torch.zeros_like(x))
        following, _ = advance(x, output, noise, [step] * len(x), diffusion)
        yield f"{i}.prev", following, arrays[f"{name}.{i}.prev"]
        x = arrays[f"{name}.{i}.prev"]


def _text_rows(arrays: Arrays, count: int, *, is_guided: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, states and masks of all rows: under guidance those of the empty text first."""

    def rows(text: str, empty: str) -> Tensor:
        told = arrays[text].repeat_interleave(count // len(arrays[text]), 0)
        if not is_guided:
            return told
        blank = arrays[empty]
        return torch.cat([blank.repeat_interleave(count // len(blank), 0), told])

    return (
        rows("text.text_embeds", "empty.text_embeds"),
        rows("text.last_hidden_state", "empty.last_hidden_state"),
        _masks(
            arrays["attention_mask"].repeat_interleave(count // len(arrays["attention_mask"]), 0), is_guided
        ),
    )


def _masks(told: Tensor, is_guided: bool) -> Tensor:
    """The empty text is its start and its end."""
    blank = torch.zeros_like(told)
    blank[:, :2] = 1
    return (torch.cat([blank, told]) if is_guided else told).bool()


def _scale(case: dict[str, Any], place: int) -> float:
    guidance = case["guidance"]
    return float(guidance[place] if isinstance(guidance, list) else guidance)


_RUN: dict[str, Callable[[Any, Any, Arrays, dict[str, Any], Path], Found]] = {
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
    "prior": _prior,
    "text_proj": _text_projection,
    "decoder": _decoder,
    "super_res_first": _super_res,
    "super_res_last": _super_res,
}
