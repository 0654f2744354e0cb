import pytest

from services.generator.unclip.conversion.convert import PARTS, convert
from services.generator.unclip.conversion.random_weights import write_random
from services.generator.unclip.model import load_model
from services.weights.model_folder import write_manifest
from tests.generator.unclip.published import write_hub


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """The golden networks in the hub's layout."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder)
    return folder


@pytest.fixture(scope="session")
def converted(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    for part in PARTS:
        convert(hub / part, folder / part, part)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Random weights: what does not depend on them is tested with them."""
    folder = tmp_path_factory.mktemp("tiny-unclip")
    write_random("tiny-unclip", folder)
    write_manifest(folder, name="tiny-unclip", stage="generator", architecture="unclip", licence="none")
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    return load_model(tiny_folder, device="cpu")
