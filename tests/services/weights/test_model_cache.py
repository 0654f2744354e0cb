"""Fetched models: where they are looked for, in which order, and that nothing half or damaged is ever found."""

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.errors import ModelError
from services.weights import download as download_module
from services.weights.cache import fetch, find_cached, open_model, push, remove
from services.weights.catalog import KNOWN
from services.weights.download import ConnectionLost
from services.weights.model_folder import check_files, read_manifest
from services.weights.remotes import S3Remote
from tests.services.weights.web_server import serving

NETWORK = Path(__file__).parents[2] / "golden" / "upscaler" / "nearest3conv_x4.safetensors"
FILE = KNOWN["upscaler", "real-l"].sources[0].location.rpartition("/")[2]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def published(tmp_path):
    """A folder with the file as it was published, small."""
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save({"params_ema": load_file(NETWORK)}, folder / FILE)
    return folder


def leftovers(cache):
    return [path for path in cache.rglob("*") if ".fetching" in path.name or ".published" in path.name]


def test_published_files_become_a_model_in_the_cache(published, cache):
    found = fetch("real-l", "upscaler", origin=str(published))

    assert found.folder == cache / "models" / "upscaler" / "real-l"
    manifest = read_manifest(found.folder)
    check_files(found.folder, manifest)
    assert (manifest.name, manifest.licence, manifest.origin) == ("real-l", "Apache-2.0", str(published))
    assert not leftovers(cache)


def test_published_files_are_taken_from_a_web_server(published, cache):
    with serving({FILE: (published / FILE).read_bytes()}) as site:
        site.num_cuts = 1
        found = fetch("real-l", "upscaler", origin=site.url)
    check_files(found.folder, read_manifest(found.folder))
    assert not leftovers(cache)


def test_a_model_that_is_cached_is_not_fetched_again(published):
    fetch("real-l", "upscaler", origin=str(published))
    assert fetch("real-l", "upscaler").place == "the user's cache"


def test_a_service_finds_a_cached_model_by_its_name(published, caplog):
    fetch("real-l", "upscaler", origin=str(published))
    with caplog.at_level(logging.INFO):
        folder, manifest = open_model("real-l", "upscaler")
    assert manifest.name == "real-l"
    assert re.search(
        rf"model real-l of the upscaler: from the user's cache in [\d.]+ s, {folder}", caplog.text
    )


def test_a_file_that_does_not_convert_leaves_no_model(published, cache):
    (published / FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError):
        fetch("real-l", "upscaler", origin=str(published))
    assert find_cached("real-l", "upscaler") is None


def test_a_folder_without_the_published_file_explains_which_was_expected(tmp_path):
    with pytest.raises(ModelError, match=FILE):
        fetch("real-l", "upscaler", origin=str(tmp_path))


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(ModelError, match="expected one of real-l, real-m, classical, lightweight"):
        fetch("huge", "upscaler")


def test_a_model_comes_back_from_s3_as_it_was_pushed(in_s3, model):
    found = fetch("real-l", "upscaler")
    assert found.place == f"s3://{in_s3}/cache/upscaler/real-l"
    assert read_manifest(found.folder) == read_manifest(model)
    check_files(found.folder, read_manifest(model))


def test_a_service_takes_a_model_from_s3_by_its_name(in_s3, model):
    folder, manifest = open_model("real-l", "upscaler")
    assert manifest.digest == read_manifest(model).digest


def test_the_machine_cache_holds_what_is_fetched_where_there_is_one(in_s3, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_MACHINE_CACHE", str(tmp_path / "machine"))
    assert fetch("real-l", "upscaler").folder.is_relative_to(tmp_path / "machine")
    assert fetch("real-l", "upscaler").place == "the machine's cache"


def test_a_connection_that_breaks_three_times_gives_the_same_bytes(in_s3, model, monkeypatch):
    monkeypatch.setattr(download_module, "RANGE_BYTES", 50_000)
    monkeypatch.setattr(download_module, "FIRST_PAUSE_S", 0.001)
    read, cuts = S3Remote.read, []

    def cut_thrice(self, start, stop):
        for piece in read(self, start, stop):
            if len(cuts) < 3 and start:
                cuts.append(start)
                yield piece[: len(piece) // 2]
                raise ConnectionLost("reset by peer")
            yield piece

    monkeypatch.setattr(S3Remote, "read", cut_thrice)
    found = fetch("real-l", "upscaler")
    assert len(cuts) == 3
    check_files(found.folder, read_manifest(model))


def test_a_damaged_object_is_named_and_not_kept(in_s3, s3, cache):
    key = "cache/upscaler/real-l/swinir/model.safetensors"
    s3.put_object(Bucket=in_s3, Key=key, Body=b"x" * 256_000)
    with pytest.raises(ModelError, match=rf"s3://{in_s3}/{key} is damaged: expected sha256"):
        fetch("real-l", "upscaler")
    assert find_cached("real-l", "upscaler") is None


def test_an_object_that_was_damaged_is_sent_again_by_the_next_push(in_s3, s3, model):
    s3.put_object(Bucket=in_s3, Key="cache/upscaler/real-l/swinir/model.safetensors", Body=b"x" * 256_000)
    push(model, f"s3://{in_s3}/cache")
    check_files(fetch("real-l", "upscaler").folder, read_manifest(model))


def test_what_is_in_s3_already_is_not_sent_again(in_s3, s3, model):
    key = "cache/upscaler/real-l/swinir/model.safetensors"
    before = s3.head_object(Bucket=in_s3, Key=key)["LastModified"]
    push(model, f"s3://{in_s3}/cache")
    assert s3.head_object(Bucket=in_s3, Key=key)["LastModified"] == before


def test_a_manifest_in_s3_cannot_write_outside_of_its_folder(in_s3, s3):
    entry = '{"sha256": "%s", "num_bytes": 1}' % ("0" * 64)
    body = f'{{"name": "real-l", "stage": "upscaler", "files": {{"swinir/../../../out": {entry}}}}}'
    s3.put_object(Bucket=in_s3, Key="cache/upscaler/real-l/manifest.json", Body=body.encode())
    with pytest.raises(ModelError, match="which is no file of a model"):
        fetch("real-l", "upscaler")


def test_without_credentials_the_error_explains_which_to_set(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPTYCH_S3_CACHE", f"s3://{bucket}/cache")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no AWS credentials; set AWS_PROFILE"):
        fetch("real-l", "upscaler")


def test_a_name_that_is_nowhere_keeps_the_services_own_error():
    with pytest.raises(ModelError, match="no upscaler model 'my-own': expected a folder, or a built-in name"):
        open_model("my-own", "upscaler")


@pytest.mark.parametrize("known", KNOWN.values(), ids=lambda known: known.name)
def test_a_known_model_states_its_size_its_licence_and_what_it_needs(known):
    assert known.num_bytes > 10**6
    assert known.licence in ("Apache-2.0", "MIT", "CreativeML Open RAIL-M")
    assert known.needs[0] == f"triptych-server[{known.architecture or known.stage},weights]"
    parts = tuple(source.part for source in known.sources)
    assert parts == known.family.all_parts


def test_removing_a_model_removes_what_was_fetched_and_nothing_else(published, cache):
    folder = fetch("real-l", "upscaler", origin=str(published)).folder
    assert remove("real-l", "upscaler") == [folder]
    assert find_cached("real-l", "upscaler") is None
    assert published.is_dir()


def test_an_attempt_that_was_stopped_goes_on_with_the_parts_that_are_there(published, cache):
    staging = cache / "models" / "upscaler" / ".real-l.fetching"
    (staging / "swinir").mkdir(parents=True)
    (staging / "swinir" / "config.json").write_text("{}")
    (staging / "swinir" / "model.safetensors").write_bytes(b"from before")
    (published / FILE).unlink()

    found = fetch("real-l", "upscaler", origin=str(published))

    assert (found.folder / "swinir" / "model.safetensors").read_bytes() == b"from before"
