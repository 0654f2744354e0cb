"""Choices between implementations, with scripted measurements: nothing here depends on how fast this machine is."""

import logging

import pytest
import torch
from torch import nn

from services.pytorch.choices import Choices
from services.pytorch.winograd import EitherConv, WinogradConv, use_winograd
from services.refiner.conversion.random_weights import write_random_part
from services.refiner.model import load_model
from services.refiner.stepper import RefineJob, RefinerStepper
from services.upscaler.model import place
from tests.refiner.conftest import SMALL
from tests.upscaler.conftest import random_swinir


class Scripted(Choices):
    """Takes the candidate of this name, wherever it is offered."""

    def __init__(self, path, favourites):
        super().__init__(path, timer=lambda call: call())
        self.favourites = favourites
        self.asked = []

    def choose(self, what, candidates):
        self.asked.append(what)
        times = {name: lambda name=name: 0.0 if name in self.favourites else 1.0 for name in candidates}
        return super().choose(what, times)


def test_the_fastest_is_chosen_and_logged_and_measured_once_for_a_machine(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "folder" / "choices.json"
    measured = []

    def timer(call):
        measured.append(1)
        return call()

    candidates = {"slow": lambda: 2.0, "fast": lambda: 1.0}
    for _ in range(2):  # another process reads the file
        assert Choices(path, timer).choose("a thing of 3 x 3", candidates) == "fast"
    assert len(measured) == 2
    assert "a thing of 3 x 3: fast (slow 2e+03 ms, fast 1e+03 ms)" in caplog.text


def test_a_choice_that_is_not_offered_any_more_is_measured_again(tmp_path):
    path = tmp_path / "choices.json"
    assert Choices(path, lambda call: call()).choose("thing", {"old": lambda: 1.0}) == "old"
    assert Choices(path, lambda call: call()).choose("thing", {"new": lambda: 1.0}) == "new"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": 3}', b"\xff"])
def test_a_damaged_file_of_choices_is_measured_again(tmp_path, content):
    path = tmp_path / "choices.json"
    path.write_bytes(content)
    assert Choices(path, lambda call: call()).choose("thing", {"one": lambda: 1.0}) == "one"


def test_a_folder_that_cannot_be_written_costs_only_another_measurement(tmp_path, caplog):
    (tmp_path / "file").touch()
    choices = Choices(tmp_path / "file" / "choices.json", lambda call: call())
    assert choices.choose("thing", {"one": lambda: 1.0}) == "one"
    assert "measured again at the next start" in caplog.text


class ByRows(Scripted):
    """Winograd for one slot's rows, the direct way for more."""

    def choose(self, what, candidates):
        self.favourites = {"winograd" if " of 2 x " in what else "direct"}
        return super().choose(what, candidates)


@pytest.mark.parametrize(
    ("kind", "favourites", "expected"),
    [(Scripted, {"winograd"}, WinogradConv), (Scripted, {"direct"}, nn.Conv2d), (ByRows, set(), EitherConv)],
)
def test_a_convolution_is_computed_in_the_way_that_was_faster(tmp_path, kind, favourites, expected):
    network = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)).eval().requires_grad_(requires_grad=False)
    x = torch.randn(8, 256, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = network(x)
    sizes = {network[0]: (4, 4)}
    use_winograd(network, choices=kind(tmp_path / "c.json", favourites), sizes=sizes, num_rows=[2, 8])
    assert type(network[0]) is expected
    for rows in (1, 2, 3, 8):
        torch.testing.assert_close(network(x[:rows]), exact[:rows], rtol=0, atol=1e-4)
    if expected is EitherConv:
        assert [network[0].uses_winograd(rows) for rows in (1, 2, 3, 8, 9)] == [
            True,
            True,
            False,
            False,
            False,
        ]


def test_the_dtype_of_a_small_swinir_is_the_faster_one(tmp_path):
    for favourite in ("float32", "bfloat16"):
        choices = Scripted(tmp_path / favourite, {favourite})
        network = place(random_swinir(), torch.device("cpu"), "bfloat16", choices)
        assert str(network.conv_first.weight.dtype) == f"torch.{favourite}"
        exact = Scripted(tmp_path / favourite, {favourite})
        place(random_swinir(), torch.device("cpu"), "float32", exact)
        assert exact.asked == []  # nothing less exact than what was asked for


def test_a_batch_in_parts_gives_the_same_pictures(tmp_path, monkeypatch):
    for part, config in SMALL.items():
        write_random_part(part, config, tmp_path / "model" / part)
    job = RefineJob("a cat", None, seed=7, num_steps=5)
    monkeypatch.setattr("services.refiner.slot_tensors.FEWEST_PARAMS_TO_SPLIT", 0)
    together, in_pairs = (
        _picture_of_a_full_house(tmp_path / "model", job, Scripted(tmp_path / way, {way}))
        for way in ("together", "in pairs")
    )
    assert abs(together.astype(int) - in_pairs).max() <= 1


def _picture_of_a_full_house(model_folder, job, choices):
    model = load_model(model_folder, device="cpu", choices=choices, num_slots=2)
    stepper = RefinerStepper(model, num_slots=2, choices=choices)
    stepper.warm_up()
    assert any("UNet" in what for what in choices.asked)
    num_steps = [stepper.admit(slot, job) for slot in (0, 1)]
    for _ in range(num_steps[0]):
        stepper.step([0, 1])
    return stepper.decode([stepper.result(1)])[0]
