"""Shows a run in a Jupyter notebook: one contact sheet, updated as images arrive.

It imports nothing of Jupyter; where a notebook's kernel runs, IPython has been imported already.
"""

import math
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

from triptych.progress import STAGE_NAMES
from triptych.result import RunResult
from triptych.v1.pipeline_pb2 import Event

# A sheet of many pictures takes tens of milliseconds to draw and travels whole.
LEAST_INTERVAL_S = 0.5


class Sheet(Protocol):
    """What a run is shown on; used as a context manager around the run."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, event: Event, result: RunResult) -> None: ...


class NoSheet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def update(self, event: Event, result: RunResult) -> None: ...


class LiveSheet:
    """A display of the notebook's cell, drawn again at most twice a second and once at the end."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        # A monotonic clock may have begun just now.
        self._drawn_s = -math.inf
        self._result: RunResult | None = None
        # The newest preview of each picture that is not there yet, by stage and index.
        self._previews: dict[tuple[str, int], bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # However it ended, what there is stays to be seen.
        self._draw()

    def update(self, event: Event, result: RunResult) -> None:
        """Takes in an event, and draws when it brought a picture and the last time is long enough ago."""
        self._result = result
        if event.HasField("preview"):
            preview = event.preview
            self._previews[STAGE_NAMES.get(preview.stage, "other"), preview.index] = preview.image.data
        elif event.HasField("image_ready"):
            image = event.image_ready.image
            self._previews.pop((STAGE_NAMES.get(image.stage, "other"), image.index), None)
        else:
            return
        if time.monotonic() - self._drawn_s >= LEAST_INTERVAL_S:
            self._draw()

    def _draw(self) -> None:
        if self._result is None or not (self._result.pictures or self._previews):
            return
        sheet = self._result.contact_sheet(self._previews)
        shown = {"image/png": sheet, "text/plain": repr(self._result)}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
        self._drawn_s = time.monotonic()


def choose_sheet(show: bool | None) -> Sheet:
    """A live sheet where a notebook would show it; `show` decides otherwise. Raises RuntimeError where none can."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if show is None:
        show = shell is not None and hasattr(shell, "kernel")
    if not show:
        return NoSheet()
    if shell is None:
        raise RuntimeError("show=True: expected a notebook, but no IPython runs here; leave `show` out")
    from IPython.display import display

    return LiveSheet(display)
