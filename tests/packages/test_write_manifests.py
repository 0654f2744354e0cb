"""The manifests of the stages, which packages/write_manifests.py writes."""

import dataclasses
import importlib.util

import pytest
import yaml

from tests.packages.layout import ROOT

MANIFESTS = ROOT / "packages" / "write_manifests.py"


@pytest.fixture
def written():
    spec = importlib.util.spec_from_file_location("write_manifests", MANIFESTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifests_are_as_the_tables_have_them(written):
    assert [
        path for path, text in written.manifests().items() if (ROOT / path).read_text("utf-8") != text
    ] == []


def test_a_fourth_stage_of_the_table_is_in_every_manifest(written):
    *_, last = written.STAGES
    fourth = dataclasses.replace(last, number=4, name="animate", worker_name="animator", port=50054)
    written.STAGES = (*written.STAGES, fourth)
    written.RESOURCES = {**written.RESOURCES, "animator": written.RESOURCES["upscaler"]}
    manifests = written.manifests()
    assert [
        path
        for path, text in manifests.items()
        if "animator" not in text and path.stem not in ("generator", "refiner", "upscaler")
    ] == []
    services = yaml.safe_load(
        next(text for path, text in manifests.items() if path.name == "docker-compose.yml")
    )["services"]
    assert services["animator"]["image"] == "triptych-animator"
    assert services["gateway"]["environment"]["TRIPTYCH_ANIMATOR"] == "dns:animator:50054"
