"""Names that become paths, what `weights rm` removes, and pickles that would never end."""

import json
import pickle
import zipfile

import pytest
from click.testing import CliRunner

from services.errors import ModelError
from services.weights.cache import fetch, find_cached
from services.weights.command import weights
from services.weights.formats.pickle_work import check_work
from services.weights.formats.torch_checkpoint import read_tensors
from services.weights.model_folder import find_model, parse_manifest

NO_NAMES = [
    "../../x",
    "/some/folder",
    "..",
    ".",
    "",
    "a/b",
    "a\\x00b",
    "-x",
    ".hidden",
    "a" * 101,
    "a b",
    "caf\u00e9",
    "a\n",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    models = tmp_path / "cache" / "models" / "refiner"
    models.mkdir(parents=True)
    return models


def model(folder, stage="refiner"):
    folder.mkdir(parents=True)
    manifest = {"name": folder.name, "stage": stage, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_becomes_no_path(cache, name):
    victim = model(cache.parents[2] / "x")
    done = CliRunner().invoke(weights, ["rm", "--", name])
    assert isinstance(done.exception, ModelError)
    assert "no name of a model" in str(done.exception)
    assert victim.is_dir()
    assert find_cached(name, "refiner") is None
    with pytest.raises(ModelError):
        fetch(name, "refiner")


def test_rm_lists_and_removes_a_model(cache):
    folder = model(cache / "mine")
    listed = CliRunner().invoke(weights, ["rm", "mine", "--dry-run"])
    assert f"would remove {folder}" in listed.output
    assert folder.is_dir()
    removed = CliRunner().invoke(weights, ["rm", "mine"])
    assert removed.exit_code == 0
    assert not folder.exists()


def test_rm_refuses_what_no_pull_has_made(cache, tmp_path):
    (cache / "papers").mkdir()
    target = model(tmp_path / "elsewhere")
    (cache / "linked").symlink_to(target)
    model(cache / "other", stage="upscaler")
    for name in ("papers", "linked", "other"):
        assert isinstance(CliRunner().invoke(weights, ["rm", name]).exception, ModelError)
        assert (cache / name).is_dir()
    assert target.is_dir()


def test_a_name_does_not_lead_out_of_the_models(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_MODELS", str(tmp_path / "models"))
    model(tmp_path / "secret")
    with pytest.raises(ModelError, match="no refiner model"):
        find_model("../../secret", "refiner")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "unet/../../x", "a//b", "unet/.x", "unet\x00", "a/b/c/d/e", "", "unet\\..\\x"],
)
def test_a_manifest_names_only_files_of_its_model(name):
    text = json.dumps({"name": "m", "stage": "refiner", "files": {name: {"sha256": "0", "num_bytes": 1}}})
    with pytest.raises(ModelError, match="no file of a model"):
        parse_manifest(text.encode(), "manifest.json")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"files": 1}',
        b'{"name": 1, "stage": "refiner", "files": {}}',
        b'{"name": "m", "stage": "../x", "files": {}}',
        b'{"name": "m", "stage": [], "files": {}}',
        b"",
    ],
)
def test_an_odd_manifest_is_an_error_in_words(text):
    with pytest.raises(ModelError):
        parse_manifest(text, "manifest.json")


def endless(build: bytes, use: bytes) -> bytes:
    """A pickle that makes tuples of shared tuples, sixty deep, and then uses the last one."""
    body = b"".join(b"q" + bytes([j]) + b"h" + bytes([j]) + build for j in range(60))
    return b"\x80\x02" + use.replace(b"X", b"N" + body)


@pytest.mark.parametrize(
    "payload",
    [
        endless(b"\x86", b"}XNs."),
        endless(b"\x86", b"}(XNu."),
        b"\x80\x04" + endless(b"\x86", b"(X\x91.")[2:],
        b"\x80\x04" + endless(b"\x86", b"\x8f(X\x90.")[2:],
        endless(b"\x86", b"c__builtin__\nset\n]Xa\x85R."),
    ],
)
def test_a_pickle_that_never_ends_is_refused(tmp_path, payload):
    path = tmp_path / "endless.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", payload)
    with pytest.raises(ModelError, match="steps to load"):
        read_tensors(path)


def test_a_usual_pickle_passes(tmp_path):
    for protocol in range(2, 6):
        value = {f"layer.{i}": ((i, (3, 3)), [i] * 10) for i in range(2_000)}
        check_work(pickle.dumps(value, protocol), tmp_path)
