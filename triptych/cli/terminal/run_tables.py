"""Tables of runs for the terminal, and the tree of one run's images."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from triptych.cli.terminal.streams import make_console
from triptych.progress import STAGE_NAMES
from triptych.result import state_name
from triptych.terminal_text import echo, escape
from triptych.v1.pipeline_pb2 import Image, Run

# Columns where no terminal has a width of its own.
WIDE = 200
STYLES = {
    "succeeded": "green",
    "partially succeeded": "yellow",
    "failed": "red",
    "awaiting selection": "cyan",
    "running": "bold",
}


def print_runs(runs: Sequence[Run]) -> None:
    """A line for each run."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("RUN", "STATE", "PICTURES", "AGE", "PROMPT"):
        table.add_column(title, no_wrap=title != "PROMPT")
    for run in runs:
        age = format_age(run.create_time.ToDatetime(UTC))
        name = run.name.removeprefix("runs/")
        table.add_row(
            escape(name), format_state(run), str(len(run.images)), age, Text(escape(run.spec.prompt))
        )
    # A name that is cut is of no use to the next command: what is not read by people is wide enough.
    make_console(width=None if sys.stdout.isatty() else WIDE).print(table)


def print_run(run: Run) -> None:
    """How a run stands, and its pictures as a tree."""
    echo(f"{escape(run.name)}  {state_name(run.state).replace('_', ' ')}  seed {run.spec.seed}")
    echo(escape(run.spec.prompt))
    for model in run.models:
        by = escape(f"{model.name} {model.digest[:12]}")
        echo(f"{STAGE_NAMES.get(model.stage, 'other')} by {by}")
    if run.error.message:
        echo(escape(f"{run.error.reason}: {run.error.message}"))
    if run.images:
        make_console(width=WIDE).print(image_tree(run.images))


def image_tree(images: Sequence[Image]) -> Tree:
    """Each picture below the one that it was made from."""
    names = {image.name for image in images}
    children: defaultdict[str, list[Image]] = defaultdict(list)
    for image in sorted(images, key=lambda each: (each.stage, each.index)):
        children[image.parent if image.parent in names else ""].append(image)
    tree = Tree(Text(f"{len(images)} pictures"), guide_style="dim")
    grow(tree, "", children)
    return tree


def grow(branch: Tree, parent: str, children: Mapping[str, Sequence[Image]]) -> None:
    for image in children.get(parent, ()):
        grow(branch.add(Text(format_image(image))), image.name, children)


def format_image(image: Image) -> str:
    score = f"  clip {image.clip_score:.3f}" if image.HasField("clip_score") else ""
    return f"{escape(image.name.rpartition('/')[2])}  {image.width}x{image.height}  seed {image.seed}{score}"


def format_state(run: Run) -> Text:
    state = state_name(run.state).replace("_", " ")
    return Text(state, style=STYLES.get(state, ""))


def format_age(since: datetime) -> str:
    """In the largest unit that makes at least one: "3 h"."""
    seconds = max(0, int((datetime.now(UTC) - since).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
