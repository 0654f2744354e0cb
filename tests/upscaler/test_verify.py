"""Golden vectors through converted folders: the right network passes in every array, another one does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.errors import ModelError
from services.upscaler.conversion.convert import convert
from services.upscaler.conversion.random_weights import CONFIGS, NAMES, write_random
from services.upscaler.conversion.verify import compare
from services.upscaler.model import load_swinir
from tests.upscaler.conftest import GOLDEN, Golden


@pytest.fixture
def part(golden: Golden, tmp_path: Path) -> Path:
    convert(golden.weights_file, tmp_path / "model" / "swinir", "swinir")
    return tmp_path / "model" / "swinir"


def test_a_converted_network_is_within_tolerance_in_every_array(golden: Golden, part: Path) -> None:
    differences = compare(part, "swinir", golden.vectors_file)
    assert [one for one in differences if not one.ok] == []
    compared = {one.name for one in differences}
    assert compared == {name for name in golden.vectors if not name.endswith(".in_u8")}


def test_an_official_pth_is_within_tolerance_in_every_array(golden: Golden, tmp_path: Path) -> None:
    torch.save({"params_ema": load_file(golden.weights_file)}, tmp_path / "net.pth")
    convert(tmp_path / "net.pth", tmp_path / "part", "swinir")
    assert all(one.ok for one in compare(tmp_path / "part", "swinir", golden.vectors_file))


def test_a_folder_of_vectors_gives_those_of_the_network(golden: Golden, part: Path) -> None:
    assert compare(part, "swinir", GOLDEN) == compare(part, "swinir", golden.vectors_file)


def test_vectors_without_a_golden_json_are_read_by_their_names(
    golden: Golden, part: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(golden.vectors_file, tmp_path / "alone.safetensors")
    assert compare(part, "swinir", Path(alone)) == compare(part, "swinir", golden.vectors_file)


@pytest.mark.parametrize(
    "name", ["norm.weight", "layers.0.residual_group.blocks.1.attn.relative_position_bias_table"]
)
def test_a_network_that_is_slightly_off_is_found_out(golden: Golden, part: Path, name: str) -> None:
    weights = load_file(part / "model.safetensors")
    weights[name] = weights[name] * 1.001
    save_file(weights, part / "model.safetensors")
    assert not all(one.ok for one in compare(part, "swinir", golden.vectors_file))


def test_a_picture_of_another_size_is_infinitely_far(part: Path, golden: Golden, tmp_path: Path) -> None:
    vectors = {name: t for name, t in golden.vectors.items() if name.startswith("fwd_16x16")}
    vectors["fwd_16x16.out"] = torch.zeros(1, 3, 32, 32)
    save_file(vectors, tmp_path / "v.safetensors")
    assert [one.max_abs_diff for one in compare(part, "swinir", tmp_path / "v.safetensors")] == [float("inf")]


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (
            {"odd_1.in_u8": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "odd_1.out": torch.zeros(1)},
            "what kind",
        ),
        ({"fwd_8x8.in_u8": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, r"no fwd_8x8\.out"),
        ({"acts_8x8.norm": torch.zeros(1)}, "no input fwd_8x8"),
        ({"something": torch.zeros(1)}, "no golden vectors"),
    ],
)
def test_a_file_that_holds_no_usable_vectors_is_refused(
    vectors: dict[str, torch.Tensor], complaint: str, part: Path, tmp_path: Path
) -> None:
    save_file(vectors, tmp_path / "v.safetensors")
    with pytest.raises(ModelError, match=complaint):
        compare(part, "swinir", tmp_path / "v.safetensors")


def test_a_folder_without_vectors_of_that_configuration_reports_it(part: Path, tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text(json.dumps({"configs": {}, "cases": []}))
    with pytest.raises(ModelError, match="configuration"):
        compare(part, "swinir", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_have_the_shapes_of_the_published_file(name: str, tmp_path: Path) -> None:
    write_random(name, tmp_path)
    network = load_swinir(tmp_path / "swinir")
    assert network.config == CONFIGS[name]
    # Counted in the published files; `tiny` is ours.
    published = {"real-l": 28013059, "swinir-lightweight": 929628}
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert num_parameters == published.get(name, num_parameters)


def test_the_same_seed_gives_the_same_random_file(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_random("tiny", tmp_path / folder, seed=seed)
    a, b, c = ((tmp_path / folder / "swinir" / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b
    assert a != c


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="real-l"):
        write_random("huge", tmp_path)
