"""The contact sheet that a notebook shows while a run is made; a list stands in for Jupyter's display."""

import sys

import pytest

from tests.triptych.conftest import png
from triptych import notebook
from triptych.notebook import LiveSheet, NoSheet, choose_sheet
from triptych.result import RunResult
from triptych.v1.pipeline_pb2 import Event, Image
from triptych.v1.stage_pb2 import STAGE_GENERATE, ImageData


class Cell:
    """What IPython.display.display and its handle would have shown."""

    def __init__(self) -> None:
        self.displayed: list[dict[str, object]] = []
        self.updates: list[dict[str, object]] = []

    def display(self, data, *, raw, display_id):
        assert raw
        assert display_id
        self.displayed.append(data)
        return self

    def update(self, data, *, raw):
        assert raw
        self.updates.append(data)


@pytest.fixture
def cell():
    return Cell()


def preview(index: int) -> Event:
    image = ImageData(mime_type="image/png", data=png(), width=8, height=8)
    return Event(preview=Event.ImagePreview(stage=STAGE_GENERATE, index=index, step=1, image=image))


def ready(index: int) -> Event:
    image = Image(name=f"runs/1/images/generate-{index}", stage=STAGE_GENERATE, index=index, data=png())
    return Event(image_ready=Event.ImageReady(image=image))


def tell(sheet: LiveSheet, *events: Event) -> None:
    result = RunResult()
    with sheet:
        for event in events:
            result.update(event)
            sheet.update(event, result)


def test_previews_and_pictures_are_drawn_on_one_display(cell, monkeypatch):
    monkeypatch.setattr(notebook, "LEAST_INTERVAL_S", 0)
    tell(LiveSheet(cell.display), preview(0), preview(0), ready(0))
    assert (len(cell.displayed), len(cell.updates)) == (1, 3)
    assert all(each["image/png"].startswith(b"\x89PNG") for each in cell.displayed + cell.updates)


def test_between_two_drawings_some_time_passes_but_the_last_is_drawn(cell, monkeypatch):
    monkeypatch.setattr(notebook, "LEAST_INTERVAL_S", 3600)
    tell(LiveSheet(cell.display), *(preview(index) for index in range(8)), ready(0))
    assert (len(cell.displayed), len(cell.updates)) == (1, 1)


def test_what_brings_no_picture_draws_nothing(cell):
    tell(LiveSheet(cell.display), Event(queued=Event.Queued(position=1)))
    assert cell.displayed == []


def test_outside_of_a_notebook_nothing_is_shown():
    assert isinstance(choose_sheet(None), NoSheet)
    assert isinstance(choose_sheet(False), NoSheet)


def test_showing_outside_of_a_notebook_is_refused(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with pytest.raises(RuntimeError, match="expected a notebook"):
        choose_sheet(True)
