"""Models that are taken whole from a folder or an address, and what is asked of their publishers."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from services.errors import ModelError
from services.generator.dalle.text.normalizer import WORD_LIST_NAME
from services.generator.unclip.model import load_model
from services.weights.cache import fetch, models_in_s3
from services.weights.formats.safetensors_file import read_safetensors
from services.weights.model_folder import check_files, read_manifest
from services.weights.remotes import artifact_remotes
from tests.generator.unclip.published import write_hub
from tests.services.weights.web_server import serving

GOLDEN = Path(__file__).parents[2] / "golden" / "generator"
ARTIFACT = "wandb://dalle-mini/dalle-mini/mega-1-fp16:latest"

pytestmark = pytest.mark.usefixtures("cache")


def files_of(folder, below=""):
    return {f"{below}{path.relative_to(folder)}": path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_model_in_a_folder_is_taken_as_it_is(model, slash):
    found = fetch("mine", "upscaler", origin=f"{model}{slash}")
    assert read_manifest(found.folder) == read_manifest(model)
    check_files(found.folder, read_manifest(model))


def test_a_model_on_a_web_server_is_taken_as_it_is(model):
    with serving(files_of(model, below="models/mine/")) as site:
        found = fetch("mine", "upscaler", origin=f"{site.url}/models/mine")
    check_files(found.folder, read_manifest(model))


def test_a_file_that_is_not_as_the_manifest_states_is_named(model):
    (model / "swinir" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"swinir/model\.safetensors is damaged: expected sha256"):
        fetch("mine", "upscaler", origin=str(model))


def test_a_model_of_another_stage_is_refused(model):
    with pytest.raises(ModelError, match="is a model of the upscaler; expected one of the refiner"):
        fetch("mine", "refiner", origin=str(model))


@pytest.fixture
def published():
    """The files of a small generator, as they would lie below an address."""
    tokenizer = {f"dalle/{name}": b"{}" for name in ("merges.txt", "tokenizer.json", "vocab.json")}
    return tokenizer | files_of(GOLDEN / "mini_scan", "dalle/") | files_of(GOLDEN / "vqgan_tiny", "vqgan/")


@pytest.mark.parametrize("has_words", [True, False])
def test_the_list_that_splits_hashtags_is_taken_where_there_is_one(published, has_words):
    words = {f"dalle/{WORD_LIST_NAME}": b"the 1\nred 2\n"} if has_words else {}
    with serving(published | words) as site:
        found = fetch("mini", "generator", origin=site.url)
    assert (f"dalle/{WORD_LIST_NAME}" in read_manifest(found.folder).files) == has_words


class Artifact:
    """What wandb answers about an artifact, as far as it is asked."""

    def __init__(self, addresses):
        self.addresses = addresses

    def files(self, names):
        return [
            SimpleNamespace(name=name, direct_url=self.addresses[name])
            for name in names
            if name in self.addresses
        ]


def test_karlo_comes_from_a_copy_of_the_hubs_folders_with_its_licence(tmp_path):
    """Of the golden networks, whose tokenizer and schedules lie in folders of their own there."""
    write_hub(tmp_path / "hub")
    with serving(files_of(tmp_path / "hub")) as site:
        found = fetch("karlo", "generator", origin=site.url, half=True)
    manifest = read_manifest(found.folder)
    assert (manifest.architecture, manifest.licence) == ("unclip", "CreativeML Open RAIL-M")
    assert "Attachment A" in manifest.notices
    dtypes = {t.dtype for t in read_safetensors(found.folder / "decoder" / "model.safetensors").values()}
    assert dtypes == {"F16"}
    model = load_model(found.folder, device="cpu")
    assert model.tokenizer.vocab_size == 535
    assert (model.prior_diffusion.clip_range, model.decoder_diffusion.variance) == (5.0, "learned_range")


@pytest.fixture
def wandb(monkeypatch):
    """In place of wandb, which needs an account: knows one artifact."""
    module = ModuleType("wandb")
    module.artifact = Artifact({})
    module.Api = lambda overrides: SimpleNamespace(artifact=lambda name: module.artifact)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_an_artifact_s_files_are_read_in_ranges_from_its_store(wandb):
    with serving({"store/1": bytes(range(100))}) as site:
        wandb.artifact.addresses = {"config.json": f"{site.url}/store/1?signature=secret"}
        site.files = {"store/1?signature=secret": bytes(range(100))}
        [remote] = artifact_remotes(ARTIFACT, ["config.json"])
        assert (remote.num_bytes, b"".join(remote.read(10, 20))) == (100, bytes(range(10, 20)))
        assert remote.name == f"{ARTIFACT}/config.json"
        remote.close()


def test_an_artifact_without_the_file_explains_which(wandb):
    with pytest.raises(ModelError, match=r"mega-1-fp16:latest holds no vocab\.json: give another place"):
        artifact_remotes(ARTIFACT, ["vocab.json"])


def test_without_an_account_the_error_explains_how_to_get_in(wandb):
    def no_key(overrides):
        raise ValueError("api_key not configured (no-tty)")

    wandb.Api = no_key
    with pytest.raises(ModelError, match="run `wandb login` or set WANDB_API_KEY"):
        artifact_remotes(ARTIFACT, ["config.json"])


def test_without_wandb_the_error_explains_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModelError, match="run `pip install wandb`, or give a folder"):
        artifact_remotes(ARTIFACT, ["config.json"])


def test_whole_models_in_s3_are_found_with_their_sizes(in_s3, s3, model):
    s3.put_object(Bucket=in_s3, Key="cache/refiner/half/unet/model.safetensors", Body=b"begun")
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert models_in_s3(f"s3://{in_s3}/cache") == {("upscaler", "real-l"): size}
