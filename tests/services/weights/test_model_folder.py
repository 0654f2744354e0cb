"""Model folders: found by name, whole or refused, and described by a manifest."""

import json

import pytest

from services.errors import ModelError
from services.weights.model_folder import (
    check_files,
    check_names,
    find_model,
    open_model,
    read_config,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    part = tmp_path / "model" / "swinir"
    part.mkdir(parents=True)
    (part / "config.json").write_text('{"scale": 4}')
    (part / "model.safetensors").write_bytes(b"weights")
    write_manifest(part.parent, name="small", stage="upscaler", licence="Apache-2.0")
    return part.parent


def test_a_whole_folder_opens(folder):
    opened, manifest = open_model(str(folder), "upscaler")
    assert opened == folder
    assert set(manifest.files) == {"swinir/config.json", "swinir/model.safetensors"}


def test_a_manifest_reads_back_as_it_was_written(folder):
    written = write_manifest(folder, name="small", stage="upscaler", vocabulary={"objects": ["cat"]})
    assert read_manifest(folder) == written


def test_the_digest_depends_on_the_weights_alone(folder):
    before = read_manifest(folder).digest
    assert write_manifest(folder, name="renamed", stage="upscaler").digest == before
    (folder / "swinir" / "model.safetensors").write_bytes(b"other")
    assert write_manifest(folder, name="small", stage="upscaler").digest != before


def test_a_changed_file_is_found_by_its_sha256(folder):
    (folder / "swinir" / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(ModelError, match=r"model\.safetensors: expected sha256"):
        open_model(str(folder), "upscaler")


def test_a_truncated_file_is_found_by_its_size(folder):
    (folder / "swinir" / "model.safetensors").write_bytes(b"wei")
    with pytest.raises(ModelError, match="expected 7 bytes, got 3"):
        open_model(str(folder), "upscaler")


def test_a_missing_file_is_named(folder):
    (folder / "swinir" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        check_files(folder, read_manifest(folder))


def test_a_manifest_cannot_point_outside_its_folder(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "0" * 64, "num_bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder.parent / "secret").write_bytes(b"x")
    with pytest.raises(ModelError, match="secret"):
        open_model(str(folder), "upscaler")


def test_another_stages_model_is_refused(folder):
    with pytest.raises(ModelError, match="model of the upscaler; expected one of the generator"):
        open_model(str(folder), "generator")


def test_a_part_that_is_not_there_is_named_with_what_to_do(tmp_path):
    (tmp_path / "vqgan").mkdir()
    (tmp_path / "vqgan" / "model.safetensors").write_bytes(b"")
    write_manifest(tmp_path, name="half", stage="generator")
    with pytest.raises(ModelError, match="no part 'dalle'.*--part dalle"):
        open_model(str(tmp_path), "generator")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', "\x00"])
def test_a_broken_manifest_is_said(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=r"manifest\.json"):
        read_manifest(folder)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match="no upscaler model 'nonsense'.*built-in name"):
        find_model("nonsense", "upscaler")


def test_models_below_the_users_own_folder_are_found_by_name(folder, tmp_path, monkeypatch):
    (tmp_path / "upscaler").mkdir()
    folder.rename(tmp_path / "upscaler" / "mine")
    monkeypatch.setenv("TRIPTYCH_MODELS", str(tmp_path))
    assert find_model("mine", "upscaler") == tmp_path / "upscaler" / "mine"


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(tmp_path)


def test_five_missing_and_left_over_names_are_listed():
    expected = {f"needed.{i}": (1,) for i in range(7)}
    found = {"stray": (1,)}
    with pytest.raises(
        ModelError, match=r"7 tensors missing \(first: needed\.0, .*needed\.4\), 1 left over \(first: stray\)"
    ):
        check_names("model.safetensors", expected, found)


def test_a_wrong_shape_is_named():
    with pytest.raises(ModelError, match=r"w: expected shape \(2, 3\), got \(3, 2\)"):
        check_names("model.safetensors", {"w": (2, 3)}, {"w": (3, 2)})
