"""Published SwinIR files become the `swinir` part of a model folder; nothing in them is executed.

A .pth is read tensor by tensor (services/weights/formats/torch_checkpoint.py). One of PyTorch's format before 1.6 goes through torch's
weights-only reader, which builds tensors and plain containers, refuses everything else, and reads the file whole.
The configuration is read off the names and shapes; a config.json beside the file, or one in the header of a
safetensors file, comes before that. Everything must fit: no tensor missing, none left over.
"""

import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.errors import ModelError
from services.families import find_family
from services.upscaler.model import BUFFERS, shapes_of
from services.upscaler.networks.swinir import SwinIRConfig
from services.weights.formats.safetensors_file import (
    FLOATING_POINT,
    LazyTensor,
    read_metadata,
    write_safetensors,
)
from services.weights.formats.torch_checkpoint import is_zip, read_tensors
from services.weights.model_folder import check_names, read_config, write_atomically

PARTS = find_family("upscaler").parts
SUFFIXES = (".pth", ".pt", ".safetensors")
# Under which key the published training code saves; the averaged weights are the ones that it releases.
WEIGHTS_KEYS = ("params_ema", "params")
FIRST_BLOCK = "layers.0.residual_group.blocks.0"


def convert(source: Path, part_folder: Path, part: str) -> None:
    """Writes config.json and model.safetensors into `part_folder`; raises ModelError."""
    if part not in PARTS:
        raise ModelError(f"the upscaler has the parts {', '.join(PARTS)}, got '{part}'")
    file = find_file(source)
    tensors = read_pth(file) if file.suffix != ".safetensors" else read_tensors(file)
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    config = find_config(file)
    if config is None:
        kinds = {kind: any(kind in name for name in tensors) for kind in (*BUFFERS, ".blocks.1.")}
        if kinds == {"attn_mask": False, "relative_position_index": True, ".blocks.1.": True}:
            raise ModelError(
                f"{file} holds relative_position_index but no attn_mask: a network without shifted windows, which no "
                "published checkpoint is"
            )
        config = infer_config(weights, str(file))
    if sum(config.depths) > len(weights):
        raise ModelError(
            f"{file}: {sum(config.depths)} blocks, but only {len(weights)} tensors; it is damaged"
        )
    check_names(str(file), shapes_of(config), {name: tensor.shape for name, tensor in weights.items()})
    for name, tensor in weights.items():
        if tensor.dtype not in FLOATING_POINT:
            raise ModelError(f"{file}: {name}: expected floating-point numbers, got {tensor.dtype}")
    write_safetensors(part_folder / "model.safetensors", weights)
    write_atomically(part_folder / "config.json", config.to_json().encode())


def find_file(source: Path) -> Path:
    """The source itself, or the one file of weights in it when it is a folder."""
    if not source.is_dir():
        if source.suffix not in SUFFIXES:
            raise ModelError(f"{source}: expected a file ending in {', '.join(SUFFIXES)}")
        return source
    files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    if len(files) != 1:
        raise ModelError(
            f"{source}: expected one file ending in {', '.join(SUFFIXES)}, got {len(files)}; name the file instead"
        )
    return files[0]


def read_pth(path: Path) -> dict[str, LazyTensor]:
    """The tensors by name, plain or below the key that the published training code saves them with."""
    if not path.is_file():
        raise ModelError(f"{path} is no file: expected a .pth")
    if not is_zip(path):
        return _read_old_pth(path)
    tensors = read_tensors(path)
    for key in WEIGHTS_KEYS:
        below = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
        if below:
            return below
    return tensors


def _read_old_pth(path: Path) -> dict[str, LazyTensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints at odd layouts; those end as errors here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: refused, and nothing in it was run: {_reason(error)}; expected nothing but tensors by name, as the "
            "published .pth files hold"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{path} is not a whole .pth file of tensors: {_reason(error)}; fetch it again"
        ) from None
    if isinstance(content, Mapping):
        for key in WEIGHTS_KEYS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ModelError(f"{path}: expected tensors by name, plain or below {' or '.join(WEIGHTS_KEYS)}")
    return {str(name): _as_lazy(tensor, path) for name, tensor in content.items()}


def _as_lazy(tensor: Tensor, path: Path) -> LazyTensor:
    names = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
    }
    if tensor.dtype not in names:
        raise ModelError(f"{path}: expected floating-point numbers, got {tensor.dtype}")
    bits = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
    return LazyTensor(names[tensor.dtype], tuple(tensor.shape), bits.numpy)


def _reason(error: Exception) -> str:
    """What is wrong with the file in a sentence, without torch's advice to load it all the same."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL|global|function) `?([\w.]+\.[\w.]+)", text):
        return f"it asks for {found[1]}"
    if "Unsupported operand" in text:
        return "it is no checkpoint as torch saves them"
    if "TorchScript" in text:
        return "it is a program (a TorchScript archive)"
    return text.split("\n")[0].split(". ")[0][:200] or type(error).__name__


def find_config(file: Path) -> SwinIRConfig | None:
    """The configuration in a safetensors header or a config.json beside the file, if it is a SwinIR's."""
    if file.suffix == ".safetensors":
        header = read_metadata(file).get("config")
        if header is not None:
            try:
                raw: Any = json.loads(header)
            except json.JSONDecodeError as error:
                raise ModelError(f"{file}: the config in the header is not JSON: {error}") from None
            if not isinstance(raw, dict):
                raise ModelError(
                    f"{file}: expected an object as config in the header, got {type(raw).__name__}"
                )
            return SwinIRConfig.from_json(raw)
    if (file.parent / "config.json").is_file():
        raw = read_config(file.parent)
        # Downloads lie side by side: the file may be another network's configuration.
        if {"upsampler", "embed_dim"} <= raw.keys():
            return SwinIRConfig.from_json(raw)
    return None


def infer_config(weights: Mapping[str, LazyTensor], where: str) -> SwinIRConfig:
    """Reads the configuration off names and shapes; raises ModelError when they are not a SwinIR's."""
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    try:
        embed_dim = shapes["conv_first.weight"][0]
        num_groups = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
        blocks = [_count(shapes, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.") for i in range(num_groups)]
        tables = [
            shapes[f"layers.{i}.residual_group.blocks.0.attn.relative_position_bias_table"]
            for i in range(num_groups)
        ]
        upsampler, upscale = _infer_upsampler(shapes)
        return SwinIRConfig(
            upscale=upscale,
            upsampler=upsampler,
            embed_dim=embed_dim,
            depths=tuple(blocks),
            num_heads=tuple(table[1] for table in tables),
            # A table has a row for each of (2 * window_size - 1) squared offsets.
            window_size=(math.isqrt(tables[0][0]) + 1) // 2,
            mlp_ratio=shapes[f"{FIRST_BLOCK}.mlp.fc1.weight"][0] / embed_dim,
            resi_connection="3conv" if "conv_after_body.0.weight" in shapes else "1conv",
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{where}: these are not the tensors of a SwinIR ({error!r}); expected names such as conv_first.weight and "
            f"{FIRST_BLOCK}.attn.qkv.weight, got {', '.join(sorted(shapes)[:5]) or 'none'}"
        ) from None


def _infer_upsampler(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    if "conv_up1.weight" in shapes:
        return "nearest+conv", 4 if "conv_up2.weight" in shapes else 2
    num_out, num_in = shapes["upsample.0.weight"][:2]
    if "conv_before_upsample.0.weight" not in shapes:
        return "pixelshuffledirect", math.isqrt(num_out // 3)
    # Each convolution makes factor x factor times as many channels, which a shuffle turns into pixels.
    num_steps = len([name for name in shapes if re.fullmatch(r"upsample\.\d+\.weight", name)])
    return "pixelshuffle", math.isqrt(num_out // num_in) ** num_steps


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in shapes if (found := re.match(pattern, name)))
