import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file

from services.errors import ModelError
from services.generator.dalle.conversion.convert import convert
from services.generator.dalle.conversion.flax_file import read_flax_file
from services.generator.dalle.conversion.verify import compare
from services.generator.dalle.model import load_dalle, load_model
from tests.generator.conftest import GOLDEN
from tests.generator.dalle.conversion.flax_files import packed, rewrite, unscanned


def identical(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_the_unscanned_layout_converts_to_the_same_part(published, converted, tmp_path):
    source = published("mega_scan")
    rewrite(source, unscanned)
    convert(source, tmp_path / "part", "dalle")
    assert identical(
        load_file(tmp_path / "part" / "model.safetensors"),
        load_file(converted["mega_scan"] / "model.safetensors"),
    )


def test_float16_stays_float16_on_disk_and_computes_in_float32(published, tmp_path):
    source = published("mini_scan")
    rewrite(source, lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()})
    convert(source, tmp_path / "part", "dalle")
    assert {tensor.dtype.name for tensor in load_file(tmp_path / "part" / "model.safetensors").values()} == {
        "float16"
    }
    params, _ = load_dalle(tmp_path / "part")
    assert params["lm_head"]["weight"].dtype == np.float32
    differences = compare(tmp_path / "part", "dalle", GOLDEN / "mini_scan")
    assert all(difference.max_abs_diff < 0.1 for difference in differences if "logits" in difference.name)


def test_an_array_in_chunks_is_joined(published, converted, tmp_path):
    source = published("mini_scan")

    def in_chunks(arrays):
        kernel = arrays["lm_head/kernel"]
        halves = np.split(kernel.ravel(), [kernel.size // 2])
        chunked = {
            "__msgpack_chunked_array__": True,
            "shape": dict(zip("01", kernel.shape, strict=True)),
            "chunks": dict(zip("01", halves, strict=True)),
        }
        return arrays | {"lm_head/kernel": chunked}

    rewrite(source, in_chunks)
    convert(source, tmp_path / "part", "dalle")
    assert identical(
        load_file(tmp_path / "part" / "model.safetensors"),
        load_file(converted["mini_scan"] / "model.safetensors"),
    )


def test_the_msgpack_itself_is_a_source_and_tokenizer_files_come_along(published, tmp_path):
    source = published("mini_scan")
    (source / "merges.txt").write_text("#version: 0.2\n")
    convert(source / "flax_model.msgpack", tmp_path / "part", "dalle")
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
    ]


def test_missing_and_left_over_names_are_listed(published, tmp_path):
    source = published("mini_scan")

    def rename(arrays):
        return arrays | {"model/decoder/typo": arrays.pop("model/decoder/embed_tokens/embedding")}

    rewrite(source, rename)
    with pytest.raises(
        ModelError, match=r"1 tensors missing \(first: decoder.embed_tokens\), 1 left over \(first: .*typo"
    ):
        convert(source, tmp_path / "part", "dalle")
    assert not (tmp_path / "part").exists()


def test_a_wrong_shape_is_named_with_what_was_expected(published, tmp_path):
    source = published("mini_scan")
    rewrite(source, lambda arrays: arrays | {"lm_head/kernel": arrays["lm_head/kernel"][:, :60]})
    with pytest.raises(ModelError, match=r"lm_head.kernel: expected shape \(32, 65\), got \(32, 60\)"):
        convert(source, tmp_path / "part", "dalle")


def test_fewer_layers_than_configured_are_noticed(published, tmp_path):
    source = published("mini_scan")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"decoder_layers": 4}))
    with pytest.raises(ModelError, match=r"decoder\.layers\.3"):
        convert(source, tmp_path / "part", "dalle")


@pytest.mark.parametrize("size", [0, 1, 100, 10_000, 255_000])
def test_a_truncated_file_is_an_error_that_explains_it(published, tmp_path, size):
    source = published("mini_scan")
    path = source / "flax_model.msgpack"
    data = path.read_bytes()[:size]
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"flax_model.msgpack: expected a Flax msgpack file"):
        convert(source, tmp_path / "part", "dalle")


@pytest.mark.parametrize(
    "tree",
    [
        {"a": 1},
        {"a": {"b": None}},
        [1, 2],
        {"a": np.zeros(3, np.int64)},
        {"a": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}},
        {"a": {"__msgpack_chunked_array__": True}},
    ],
    ids=repr,
)
def test_msgpack_that_holds_anything_but_float_arrays_is_refused(tmp_path, tree):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(packed(tree))
    with pytest.raises(ModelError, match=r"flax_model\.msgpack"):
        read_flax_file(path)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "flax_model.msgpack"
    path.write_bytes(data)
    try:
        assert isinstance(read_flax_file(path), dict)
    except ModelError:
        assert data != b"\x80"  # an empty map is a Flax file, if one of nothing


@pytest.mark.parametrize("missing", ["config.json", "flax_model.msgpack"])
def test_a_missing_file_is_named(published, tmp_path, missing):
    source = published("vqgan_tiny")
    (source / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        convert(source, tmp_path / "part", "vqgan")


def test_another_stages_part_is_refused(published, tmp_path):
    with pytest.raises(ModelError, match="expected a part of the generator"):
        convert(published("mini_scan"), tmp_path / "part", "unet")


def test_parts_of_different_models_are_distinguished(converted, model_folder, tmp_path):
    (tmp_path / "dalle").symlink_to(model_folder / "dalle")
    (tmp_path / "vqgan").symlink_to(converted["vqgan_tiny"])
    with pytest.raises(ModelError, match="writes 16 tokens of 64 codes, the vqgan reads 64 of 64"):
        load_model(tmp_path)
