"""The networks, through converted folders, against vectors made with the published packages."""

import numpy as np
import pytest

from services.errors import ModelError
from services.generator.dalle.conversion.verify import compare
from tests.generator.conftest import DALLES, GOLDEN


@pytest.mark.parametrize("name", DALLES)
def test_a_converted_dalle_agrees_with_the_reference(converted, name):
    differences = compare(converted[name], "dalle", GOLDEN / name)
    assert len(differences) == 7
    assert [difference for difference in differences if not difference.ok] == []


def test_a_converted_vqgan_agrees_with_the_reference(converted):
    differences = compare(converted["vqgan_tiny"], "vqgan", GOLDEN / "vqgan_tiny" / "vectors.npz")
    assert len(differences) == 7
    assert [difference for difference in differences if not difference.ok] == []


def test_vectors_of_another_network_are_distinguished_by_their_differences(converted):
    differences = compare(converted["mini_scan"], "dalle", GOLDEN / "mini_bias_ffn_lnscale")
    assert not any(difference.ok for difference in differences)


@pytest.mark.parametrize(
    ("golden", "message"),
    [
        ("vqgan_tiny", "no array"),
        ("mega_scan", "another network"),
        ("text/normalizer.json", "expected an .npz"),
    ],
)
def test_vectors_that_are_not_the_parts_are_refused(converted, golden, message):
    with pytest.raises(ModelError, match=message):
        compare(converted["mini_scan"], "dalle", GOLDEN / golden)


def test_pickled_vectors_are_refused(converted, tmp_path):
    np.savez(tmp_path / "vectors.npz", input_ids=np.array([{}], dtype=object))
    with pytest.raises(ModelError, match="vectors.npz"):
        compare(converted["mini_scan"], "dalle", tmp_path)
