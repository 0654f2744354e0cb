"""The loaded network against golden vectors of the published code, array by array.

Vectors are safetensors: `<case>.in_u8`, `<case>.out`, and `acts_<H>x<W>.<module>` for what a module gave in the case
`fwd_<H>x<W>`. A golden.json beside them has the kind of each case; without one, the case's name does.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from services.errors import ModelError
from services.pytorch.parts import read_tensors
from services.upscaler.model import load_swinir, place
from services.upscaler.networks.swinir import SwinIR, SwinIRConfig
from services.upscaler.stepper import upscale
from services.upscaler.tiling import pad
from services.weights.model_folder import GoldenDifference

# The noise of float32 is below 4.4e-7; the mildest mistakes tried (tanh GELU, LayerNorm eps 1e-6) show at 1.3e-5.
TOLERANCE = 2e-6
# A value half-way between two levels may fall on either side.
TOLERANCE_LEVELS = 1.0
KIND_OF_NAME = {
    "fwd": "forward",
    "padrule": "official_infer",
    "tile": "official_tile",
    "u8_rgb": "u8_hwc_rgb",
    "u8_demo_swapped": "u8_hwc_demo_swap",
}
TILING_IN_NAME = re.compile(r"tile(\d+)_ov(\d+)")


def compare(part_folder: Path, part: str, golden: Path) -> list[GoldenDifference]:
    """Runs the part as the service loads it; `golden` is a vectors file or a folder of them with a golden.json."""
    if part != "swinir":
        raise ModelError(f"the upscaler has the part swinir, got '{part}'")
    network = place(load_swinir(part_folder), torch.device("cpu"))
    file, facts = find_vectors(golden, network.config)
    vectors = read_tensors(file, "SwinIR")
    differences = []
    for case in sorted({name.removesuffix(".in_u8") for name in vectors if name.endswith(".in_u8")}):
        if f"{case}.out" not in vectors:
            raise ModelError(f"{file}: {case}.in_u8 has no {case}.out beside it")
        tiling = facts.get(case, {})
        ours = run_case(network, case, vectors[f"{case}.in_u8"], kind_of(case, tiling), tiling)
        differences.append(_difference(f"{case}.out", ours, vectors[f"{case}.out"]))
    differences += compare_activations(network, vectors)
    if not differences:
        raise ModelError(f"{file} holds no golden vectors: expected arrays such as fwd_16x16.in_u8")
    return differences


def find_vectors(golden: Path, config: SwinIRConfig) -> tuple[Path, dict[str, Any]]:
    """The vectors file for this network, and the entries of golden.json for its cases, by name."""
    folder = golden if golden.is_dir() else golden.parent
    try:
        facts = json.loads((folder / "golden.json").read_text("utf-8"))
        configs, cases = facts["configs"], facts["cases"]
        fitting = [
            name for name, entry in configs.items() if SwinIRConfig.from_json(entry["config"]) == config
        ]
        by_network = {name: {c["case"]: c for c in cases if c["config"] == name} for name in configs}
    except FileNotFoundError:
        by_network, fitting = {}, []
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / 'golden.json'} is not a list of golden cases: {error!r}") from None
    if not golden.is_dir():
        return golden, by_network.get(golden.name.removesuffix(".vectors.safetensors"), {})
    files = [golden / f"{name}.vectors.safetensors" for name in fitting]
    if len(files) != 1:
        raise ModelError(
            f"{golden}: expected the vectors of one network of this configuration, got {len(files)}; "
            f"name the .vectors.safetensors file instead. The configuration is {config.to_json()}"
        )
    return files[0], by_network[fitting[0]]


def kind_of(case: str, facts: Mapping[str, Any]) -> str:
    if "kind" in facts:
        return str(facts["kind"])
    for start, kind in KIND_OF_NAME.items():
        if case.startswith(start):
            return kind
    raise ModelError(
        f"{case}: nothing says what kind of case it is; expected a golden.json beside the vectors"
    )


@torch.no_grad()
def run_case(network: SwinIR, case: str, values: Tensor, kind: str, facts: Mapping[str, Any]) -> Tensor:
    if kind == "forward":
        return network(values.float() / 255)
    if kind == "official_infer":
        return _crop(network(_pad(values, network)), values, network)
    if kind == "official_tile":
        found = TILING_IN_NAME.match(case)
        tile, overlap = (facts["tile"], facts["tile_overlap"]) if "tile" in facts else _tiling(case, found)
        return _crop(enlarge_averaged_tiles(network, _pad(values, network), tile, overlap), values, network)
    if kind == "u8_hwc_rgb":
        return torch.from_numpy(upscale(network, values.numpy(), tile_size=0, tile_overlap=0))
    if kind == "u8_hwc_demo_swap":
        # That program swaps red and blue before the network and back after it.
        swapped = values.flip(-1).contiguous().numpy()
        return torch.from_numpy(upscale(network, swapped, tile_size=0, tile_overlap=0)).flip(-1)
    raise ModelError(f"{case}: unknown kind '{kind}'; expected one of {', '.join(KIND_OF_NAME.values())}")


def enlarge_averaged_tiles(
    network: SwinIR, pictures: Float[Tensor, "B 3 H W"], tile_size: int, tile_overlap: int
) -> Float[Tensor, "B 3 H_out W_out"]:
    """Tiles as the published script lays and averages them: for comparison alone, its seams are its own."""
    upscale = network.config.upscale
    height, width = pictures.shape[-2:]
    tile = min(tile_size, height, width)
    total = pictures.new_zeros(*pictures.shape[:2], height * upscale, width * upscale)
    count = torch.zeros_like(total)
    for top in [*range(0, height - tile, tile - tile_overlap), height - tile]:
        for left in [*range(0, width - tile, tile - tile_overlap), width - tile]:
            place = (
                ...,
                slice(top * upscale, (top + tile) * upscale),
                slice(left * upscale, (left + tile) * upscale),
            )
            total[place] += network(pictures[..., top : top + tile, left : left + tile])
            count[place] += 1
    return total / count


def compare_activations(network: SwinIR, vectors: Mapping[str, Tensor]) -> list[GoldenDifference]:
    differences = []
    modules = dict(network.named_modules())
    sizes = {name.split(".")[0].removeprefix("acts_") for name in vectors if name.startswith("acts_")}
    for size in sorted(sizes):
        wanted = {name.split(".", 1)[1]: name for name in vectors if name.startswith(f"acts_{size}.")}
        if f"fwd_{size}.in_u8" not in vectors:
            raise ModelError(f"there are activations acts_{size}, but no input fwd_{size}.in_u8")
        seen: dict[str, Tensor] = {}
        hooks = [
            modules[module].register_forward_hook(_keep(seen, module))
            for module in wanted
            if module in modules
        ]
        with torch.no_grad():
            network(vectors[f"fwd_{size}.in_u8"].float() / 255)
        for hook in hooks:
            hook.remove()
        for module, name in sorted(wanted.items()):
            ours = seen.get(module, torch.empty(0))
            # A row per pixel here, a picture of rows there: the same numbers in the same order.
            if ours.ndim == 2 and ours.numel() == vectors[name].numel():
                ours = ours.view(vectors[name].shape)
            differences.append(_difference(name, ours, vectors[name]))
    return differences


def _keep(seen: dict[str, Tensor], module: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen[module] = output.clone()  # the next block changes the stream in place

    return hook


def _pad(values: Tensor, network: SwinIR) -> Tensor:
    padded = [pad(one, window_size=network.config.window_size) for one in values.permute(0, 2, 3, 1).numpy()]
    return torch.stack([torch.from_numpy(one) for one in padded]).permute(0, 3, 1, 2).float() / 255


def _crop(enlarged: Tensor, values: Tensor, network: SwinIR) -> Tensor:
    height, width = (size * network.config.upscale for size in values.shape[-2:])
    return enlarged[..., :height, :width]


def _tiling(case: str, found: re.Match[str] | None) -> tuple[int, int]:
    if found is None:
        raise ModelError(f"{case}: expected its tiling in golden.json or in its name, as in tile16_ov8_17x25")
    return int(found[1]), int(found[2])


def _difference(name: str, ours: Tensor, golden: Tensor) -> GoldenDifference:
    # Pictures are of the order of 1; the noise of larger activations grows with them.
    largest = max(1.0, golden.abs().max().item())
    tolerance = TOLERANCE * largest if golden.is_floating_point() else TOLERANCE_LEVELS
    if ours.shape != golden.shape:
        return GoldenDifference(name, float("inf"), tolerance)
    difference = (ours.double() - golden.double()).abs().max().item()
    return GoldenDifference(name, difference, tolerance)
