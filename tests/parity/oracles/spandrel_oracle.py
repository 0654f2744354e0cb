"""spandrel's SwinIR: writes random checkpoints as the published training code saves them, and what it computes.

Runs in its own environment: `python spandrel_oracle.py FOLDER`. FOLDER/cases.json: {name: the network's settings}; for
each case NAME/network.pth ({"params_ema": ...}, buffers included) and NAME/vectors.safetensors.
"""

import enum
import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file


def stand_in_for_torchvision() -> None:
    """torchvision does not import beside this torch. spandrel imports three of its names, for networks unused here."""

    class InterpolationMode(enum.Enum):
        BILINEAR = "bilinear"
        NEAREST = "nearest"

    def not_here(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("torchvision is not installed; SwinIR does not need it")

    functional = types.ModuleType("torchvision.transforms.functional")
    functional.InterpolationMode = InterpolationMode
    functional.rotate = functional.normalize = not_here
    for name in ("torchvision", "torchvision.transforms"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.transforms.functional"] = functional


warnings.simplefilter("ignore")
stand_in_for_torchvision()

import spandrel  # noqa: E402


def main() -> None:
    folder = Path(sys.argv[1])
    swinir = importlib.import_module("spandrel.architectures.SwinIR.__arch.SwinIR").SwinIR
    for seed, (name, settings) in enumerate(json.loads((folder / "cases.json").read_text()).items()):
        rng = torch.Generator().manual_seed(seed)
        network = swinir(in_chans=3, img_size=16, img_range=1.0, **settings)
        randomize(network, rng)
        (folder / name).mkdir()
        torch.save({"params_ema": network.state_dict()}, folder / name / "network.pth")
        # Back through its own loader, which reads the configuration off the tensors.
        loaded = spandrel.ModelLoader("cpu").load_from_file(folder / name / "network.pth")
        assert loaded.architecture.id == "SwinIR", loaded.architecture.id
        vectors = {}
        for height, width in ((16, 24), (9, 13)):
            image = torch.randint(0, 256, (2, 3, height, width), generator=rng, dtype=torch.uint8)
            with torch.no_grad():
                vectors[f"fwd_{height}x{width}.out"] = loaded.model.eval()(image.float() / 255).contiguous()
            vectors[f"fwd_{height}x{width}.in_u8"] = image
        save_file(vectors, folder / name / "vectors.safetensors")


def randomize(network: torch.nn.Module, rng: torch.Generator) -> None:
    """Every parameter of a size that matters, so that one forgotten shows."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
            elif name.endswith("relative_position_bias_table"):
                parameter.copy_(noise)
            else:
                parameter.copy_(0.7 * noise / noise[0].numel() ** 0.5)


if __name__ == "__main__":
    main()
