"""The table of the stages, against the contract and the page."""

import re
from pathlib import Path

import pytest

from gateway.stages import STAGES
from triptych import stages
from triptych.v1 import stage_pb2
from triptych.v1.pipeline_pb2 import AutomaticMode, RunSpec, SelectImagesRequest

PAGE_TABLE = Path(__file__).parents[2] / "gateway" / "web" / "stages.js"


def test_the_table_has_every_stage_of_the_contract_in_order():
    numbers = {f"STAGE_{stage.name.upper()}": stage.number for stage in stages.STAGES}
    assert {"STAGE_UNSPECIFIED": 0, **numbers} == dict(stage_pb2.Stage.items())
    assert list(numbers.values()) == [1, 2, 3]
    assert [
        vars(stage).items() <= vars(called).items()
        for stage, called in zip(stages.STAGES, STAGES, strict=True)
    ] == [True] * 3


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_a_field_of_spec_and_selection_and_has_its_method(stage):
    message = RunSpec.DESCRIPTOR.fields_by_name[stage.name].message_type
    assert ("count" in message.fields_by_name) == stage.draws
    assert (stage.name in SelectImagesRequest.Selection.DESCRIPTOR.fields_by_name) == (stage is not STAGES[0])
    assert (f"top_k_after_{stage.name}" in AutomaticMode.DESCRIPTOR.fields_by_name) == (
        stage is not STAGES[-1]
    )
    assert (
        stage.method
        in stage.request.__annotations__["return"]
        .DESCRIPTOR.file.services_by_name[stage.service.rpartition(".")[2]]
        .methods_by_name
    )


def test_the_page_has_the_same_stages():
    text = PAGE_TABLE.read_text("utf-8")
    workers = re.search(r"WORKERS = \{(.*?)\}", text)[1]
    assert re.findall(r'(\w+): "(\w+)"', workers) == [(stage.name, stage.worker_name) for stage in STAGES]
    assert re.findall(r'"(\w+)"', re.search(r"STAGES = \[(.*?)\]", text)[1]) == [
        stage.name for stage in STAGES
    ]
    drawing = re.findall(r'"(\w+)"', re.search(r"DRAWS = new Set\(\[(.*?)\]", text)[1])
    assert drawing == [stage.name for stage in STAGES if stage.draws]
