"""Writes PyTorch's published files: state dicts, a module that was pickled whole, a TorchScript archive."""

import sys
import types
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.published.numbers import tensor

Shapes = Mapping[str, tuple[int, ...]]


def weight(name: str, shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
    """Weights that keep the size of what passes through them."""
    if name.endswith("logit_scale"):
        return torch.tensor(np.log(100.0), dtype=getattr(torch, dtype))
    if len(shape) <= 1:
        return torch.from_numpy(tensor(name, shape, dtype, scale=0.02, offset=float(name.endswith("weight"))))
    fan_in = shape[-1] if "emb" in name.rpartition("/")[2] else prod(shape[1:])
    return torch.from_numpy(tensor(name, shape, dtype, scale=fan_in**-0.5))


def write_state_dict(path: Path, shapes: Shapes, *, key: str = "") -> None:
    weights = {name: weight(name, shape) for name, shape in shapes.items()}
    torch.save({key: weights} if key else weights, path)


def write_swinir(path: Path, names: Mapping[str, tuple[tuple[int, ...], str]], *, key: str) -> None:
    """With the buffers that the published code saves."""
    weights = {}
    for name, (shape, dtype) in names.items():
        if dtype == "int64":
            weights[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("attn_mask"):
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = 0.5 * weight(name, shape) if len(shape) > 1 else weight(name, shape)
    torch.save({key: weights}, path)


class Autoencoder(nn.Module):
    """Pickles as the class that kl-f8.pt was pickled with."""


class Part(nn.Module):
    """Pickles as a class of that package."""


class Settings(dict):
    """Pickles as PyTorch Lightning's dictionary of settings."""


def write_module(path: Path, shapes: Shapes) -> None:
    """The networks below `ldm` classes, with a loss and settings beside them, pickled whole."""
    root = _tree(shapes, Autoencoder, Part)
    root.loss = Part()
    root.loss.logvar = nn.Parameter(torch.zeros(()))
    root._hparams = Settings(embed_dim=4, monitor="val/rec_loss")
    names = {
        "ldm.models.autoencoder": {"AutoencoderKL": Autoencoder},
        "ldm.modules.diffusionmodules.model": {"ResnetBlock": Part},
        "pytorch_lightning.utilities.parsing": {"AttributeDict": Settings},
    }
    made: dict[str, Any] = {}
    for package, classes in names.items():
        for end in range(package.count(".") + 1):
            parent = ".".join(package.split(".")[: end + 1])
            made.setdefault(parent, types.ModuleType(parent))
        for name, kind in classes.items():
            kind.__module__, kind.__name__, kind.__qualname__ = package, name, name
            setattr(made[package], name, kind)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        torch.save(root, path)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def write_torchscript(path: Path, shapes: Shapes) -> None:
    """Half-precision parameters in modules of a compiled program."""
    root = _tree(shapes, Scripted, Scripted, dtype="float16")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # TorchScript itself is; the published file is one
        torch.jit.save(torch.jit.script(root), str(path))


def _tree(
    shapes: Shapes, root: type[nn.Module], inner: type[nn.Module], *, dtype: str = "float32"
) -> nn.Module:
    """Modules in modules, as the names have it."""
    top = root()
    for name, shape in shapes.items():
        *folders, leaf = name.split(".")
        module = top
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, inner())
            module = module._modules[folder]
        module.register_parameter(leaf, nn.Parameter(weight(name, shape, dtype), requires_grad=False))
    return top
