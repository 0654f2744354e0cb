"""Published files become model folders; what is no whole set of tensors is refused, and nothing in it runs."""

import collections
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.errors import ModelError
from services.upscaler.conversion.convert import convert
from services.upscaler.model import BUFFERS, load_swinir
from services.upscaler.networks.swinir import SwinIRConfig
from services.weights.model_folder import read_config
from tests.upscaler.conftest import Golden, random_swinir

VARIANTS: list[dict[str, Any]] = [
    {"upsampler": "pixelshuffle", "upscale": 2},
    {"upsampler": "pixelshuffle", "upscale": 3, "resi_connection": "3conv"},
    {"upsampler": "pixelshuffle", "upscale": 4},
    {"upsampler": "pixelshuffle", "upscale": 8},
    {"upsampler": "pixelshuffledirect", "upscale": 2},
    {"upsampler": "pixelshuffledirect", "upscale": 3},
    {"upsampler": "nearest+conv", "upscale": 2, "window_size": 7},
    {"upsampler": "nearest+conv", "upscale": 4, "resi_connection": "3conv"},
    {"depths": (1, 3), "num_heads": (3, 2), "mlp_ratio": 2.5},
]


def save_pth(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("key", ["params_ema", "params", None])
def test_the_configuration_is_read_off_names_and_shapes(
    settings: dict[str, Any], key: str | None, tmp_path: Path
) -> None:
    network = random_swinir(**settings)
    weights = network.state_dict()
    convert(save_pth(tmp_path / "a.pth", {key: weights} if key else weights), tmp_path / "part", "swinir")
    assert SwinIRConfig.from_json(read_config(tmp_path / "part")) == network.config
    assert_same(load_swinir(tmp_path / "part").state_dict(), weights)


def test_the_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged, last = random_swinir(seed=1).state_dict(), random_swinir(seed=2).state_dict()
    convert(
        save_pth(tmp_path / "a.pth", {"params": last, "params_ema": averaged}), tmp_path / "part", "swinir"
    )
    assert_same(load_swinir(tmp_path / "part").state_dict(), averaged)


def test_buffers_are_optional_and_never_stored(golden: Golden, tmp_path: Path) -> None:
    stripped = {name: t for name, t in load_file(golden.weights_file).items() if not name.endswith(BUFFERS)}
    save_file(stripped, tmp_path / "stripped.safetensors")
    convert(golden.weights_file, tmp_path / "with", "swinir")
    convert(tmp_path / "stripped.safetensors", tmp_path / "without", "swinir")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert load_file(tmp_path / "with" / "model.safetensors").keys() == stripped.keys()


def test_a_folder_with_one_file_of_weights_and_its_configuration_converts(tmp_path: Path) -> None:
    network = random_swinir()
    source = tmp_path / "source"
    source.mkdir()
    save_pth(source / "net.pth", network.state_dict())
    (source / "config.json").write_text(json.dumps({**json.loads(network.config.to_json()), "img_size": 48}))
    convert(source, tmp_path / "part", "swinir")
    assert_same(load_swinir(tmp_path / "part").state_dict(), network.state_dict())


def test_another_networks_configuration_beside_the_file_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dallebart"}')
    network = random_swinir()
    convert(save_pth(tmp_path / "a.pth", network.state_dict()), tmp_path / "part", "swinir")
    assert SwinIRConfig.from_json(read_config(tmp_path / "part")) == network.config


def test_float16_weights_stay_small_on_disk_and_compute_in_float32(tmp_path: Path) -> None:
    weights = {name: t.half() for name, t in random_swinir().state_dict().items()}
    convert(save_pth(tmp_path / "a.pth", weights), tmp_path / "part", "swinir")
    assert {t.dtype for t in load_file(tmp_path / "part" / "model.safetensors").values()} == {torch.float16}
    assert {t.dtype for t in load_swinir(tmp_path / "part").state_dict().values()} == {torch.float32}


def test_a_missing_and_a_left_over_tensor_are_named(tmp_path: Path) -> None:
    weights = random_swinir().state_dict()
    weights["extra.weight"] = weights.pop("norm.weight")
    with pytest.raises(ModelError, match=r"norm\.weight.*extra\.weight"):
        convert(save_pth(tmp_path / "a.pth", weights), tmp_path / "part", "swinir")
    assert not (tmp_path / "part").exists()


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = random_swinir().state_dict()
    weights["norm.weight"] = torch.ones(13)
    with pytest.raises(ModelError, match=r"norm\.weight: expected shape \(12,\), got \(13,\)"):
        convert(save_pth(tmp_path / "a.pth", weights), tmp_path / "part", "swinir")


def test_a_network_that_was_built_without_shifted_windows_is_refused(tmp_path: Path) -> None:
    weights = random_swinir().state_dict()
    for block in (0, 1):
        name = f"layers.0.residual_group.blocks.{block}.attn.relative_position_index"
        weights[name] = torch.zeros(16, 16, dtype=torch.int64)
    with pytest.raises(ModelError, match="shifted windows"):
        convert(save_pth(tmp_path / "a.pth", weights), tmp_path / "part", "swinir")


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.ones(1)}, {}, {"params": {"epoch": 3}}, [torch.ones(1)], {"params_ema": "text"}],
)
def test_a_file_that_is_no_swinir_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        convert(save_pth(tmp_path / "a.pth", content), tmp_path / "part", "swinir")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part_of_it", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(suffix: str, part_of_it: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    weights = random_swinir().state_dict()
    if suffix == ".pth":
        save_pth(path, weights)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(part_of_it * path.stat().st_size)])
    with pytest.raises(ModelError, match=r"a\."):
        convert(path, tmp_path / "part", "swinir")


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"\.pth"):
        convert(tmp_path / "a.onnx", tmp_path / "part", "swinir")


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="vqgan"):
        convert(tmp_path / "a.pth", tmp_path / "part", "vqgan")


class Calls:
    """An object whose pickle calls something when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def malicious_contents(marker: Path) -> dict[str, object]:
    touch = f"touch {marker}"
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(eval, f"open({str(marker)!r}, 'w')"),
        "below params_ema": {"params_ema": {"conv_first.weight": Calls(os.system, touch)}},
        "nested reduce": Calls(collections.OrderedDict, Calls(os.system, touch)),
        "open": {"params": Calls(open, str(marker), "w")},
        "an unknown class": {"params": Calls(zipfile.ZipFile, str(marker), "w")},
    }


@pytest.mark.parametrize("attack", list(malicious_contents(Path("x"))))
@pytest.mark.parametrize("layout", ["zip", "legacy", "plain pickle"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(attack: str, layout: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = malicious_contents(marker)[attack]
    if layout == "plain pickle":
        (tmp_path / "a.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(ModelError, match=r"a\.pth"):
        convert(tmp_path / "a.pth", tmp_path / "part", "swinir")
    assert not marker.exists()
    assert not (tmp_path / "part").exists()


def test_the_refusal_names_what_the_file_asked_for_and_advises_no_way_around(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "a.pth", Calls(os.system, "true"))
    with pytest.raises(ModelError, match=r"posix\.system") as refused:
        convert(path, tmp_path / "part", "swinir")
    assert "weights_only" not in str(refused.value)


def test_the_attacks_would_run_in_a_plain_unpickler(tmp_path: Path) -> None:
    for name, content in malicious_contents(tmp_path / "ran").items():
        read_it = "import pickle, sys; pickle.load(sys.stdin.buffer)"
        subprocess.run(
            [sys.executable, "-c", read_it], input=pickle.dumps(content), check=False, capture_output=True
        )
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/constants.pkl", pickle.dumps({}))
        archive.writestr("a/code/__torch__.py", "")
        archive.writestr("a/version", "3\n")
    with pytest.raises(ModelError):
        convert(tmp_path / "a.pth", tmp_path / "part", "swinir")


def test_a_folder_that_lacks_a_weight_does_not_load(tmp_path: Path) -> None:
    network = random_swinir()
    weights = network.state_dict()
    del weights["norm.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(network.config.to_json())
    with pytest.raises(ModelError, match=r"norm\.bias"):
        load_swinir(tmp_path)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
