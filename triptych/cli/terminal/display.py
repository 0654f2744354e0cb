"""Shows a run in the terminal: start-up and live progress on a TTY, a plain line per step of note elsewhere."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from triptych.cli.processes import ServiceReady
from triptych.cli.terminal.streams import is_plain_terminal, make_console
from triptych.progress import RunProgress, StageProgress
from triptych.terminal_text import echo, escape
from triptych.v1.pipeline_pb2 import Event

# A picture's cell: from waiting over eight heights to done.
WAITING = "·"
HEIGHTS = "▁▂▃▄▅▆▇█"
REFRESHES_PER_S = 8
# More pictures than this are shown as a count alone.
MAX_CELLS = 64


class Display(Protocol):
    """What a run is shown by; used as a context manager around the run."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *exception: object) -> None: ...
    def starting(self, names: list[str]) -> None: ...
    def service_ready(self, name: str, ready: ServiceReady) -> None: ...
    def note(self, text: str) -> None: ...
    def show(self, event: Event, progress: RunProgress) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...


class SilentDisplay:
    """Shows nothing but notes: the reader is a program."""

    def __enter__(self) -> "SilentDisplay":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def starting(self, names: list[str]) -> None: ...

    def service_ready(self, name: str, ready: ServiceReady) -> None: ...

    def note(self, text: str) -> None:
        echo(escape(text), err=True)

    def show(self, event: Event, progress: RunProgress) -> None: ...

    def paused(self) -> AbstractContextManager[None]:
        """While something else is written to the terminal."""
        return nullcontext()


class PlainDisplay(SilentDisplay):
    """Lines for a log file: services that serve, pictures that are finished, stages that are done."""

    def starting(self, names: list[str]) -> None:
        echo(f"starting {', '.join(names)}", err=True)

    def service_ready(self, name: str, ready: ServiceReady) -> None:
        echo(escape(" ".join(f"{name} serves {ready.model} at {ready.address}".split())), err=True)

    def show(self, event: Event, progress: RunProgress) -> None:
        kind = event.WhichOneof("kind")
        if kind == "queued" and progress.waiting is not None:
            echo(f"the run is {progress.waiting}", err=True)
        elif kind == "image_ready":
            name = escape(event.image_ready.image.name.rsplit("/", 1)[-1])
            stage = progress.stage(event.image_ready.image.stage)
            seconds = stage.elapsed_s(progress.clock())
            echo(f"{name} ({len(stage.finished)} of {stage.num_expected}) after {seconds:.1f} s", err=True)


class LiveDisplay:
    """A small table that is redrawn in place: the services while they start, then a row of cells for each stage."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console(stderr=True)
        self.services: dict[str, str] = {}
        self.progress: RunProgress | None = None
        self.live = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_S,
            # What it showed stays; the last picture is the summary.
            transient=False,
        )

    def __enter__(self) -> "LiveDisplay":
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def starting(self, names: list[str]) -> None:
        self.services = dict.fromkeys(names, "starting ...")

    def service_ready(self, name: str, ready: ServiceReady) -> None:
        self.services[name] = escape(f"{ready.address}  {ready.model}")

    def note(self, text: str) -> None:
        self.console.print(Text(escape(text)))

    def show(self, event: Event, progress: RunProgress) -> None:
        self.progress = progress

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.live.stop()
        yield
        self.live.start()

    def render(self) -> RenderableType:
        if self.progress is None:
            return services_table(self.services)
        if self.progress.waiting is not None:
            return Text(f"The run is {self.progress.waiting}.")
        return stages_table(self.progress.stages, self.progress.clock())


def services_table(services: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, state in services.items():
        table.add_row(Text(name, style="bold"), Text(state, style="dim"))
    return table


def stages_table(stages: Mapping[str, StageProgress], now_s: float) -> Table:
    """One row a stage: its pictures as cells that fill up, how many are done, how long it has taken."""
    table = Table.grid(padding=(0, 2))
    for name, stage in stages.items():
        seconds = f"{stage.elapsed_s(now_s):.1f} s" if stage.started_s is not None else ""
        waiting = str(stage.waiting) if stage.waiting and not seconds else ""
        table.add_row(
            Text(name, style="bold"),
            cells(stage),
            f"{len(stage.finished)} of {stage.num_expected}",
            Text(seconds or waiting, style="dim"),
        )
    return table


def cells(stage: StageProgress) -> Text:
    text = Text()
    for index in sorted(stage.fractions)[:MAX_CELLS]:
        if index in stage.finished:
            text.append(HEIGHTS[-1], style="green")
        else:
            text.append(cell(stage.fractions[index]), style="yellow")
    text.append(WAITING * (min(stage.num_expected, MAX_CELLS) - len(text)), style="dim")
    return text


def cell(fraction: float) -> str:
    return WAITING if fraction <= 0 else HEIGHTS[min(int(fraction * len(HEIGHTS)), len(HEIGHTS) - 1)]


def choose_display(*, as_json: bool, is_quiet: bool = False) -> Display:
    """Silent for a program, a live table in a terminal, plain lines elsewhere."""
    if as_json or is_quiet:
        return SilentDisplay()
    console = make_console(stderr=True)
    is_live = console.is_terminal and not console.is_dumb_terminal and not is_plain_terminal()
    return LiveDisplay(console) if is_live else PlainDisplay()
