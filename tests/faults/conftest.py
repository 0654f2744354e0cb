"""One gateway and its workers for many cases, and a table of what each case showed."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from tests.faults.processes import Cluster, cluster
from tests.faults.run_observer import Caller, Watcher, replay, spec

# What a worker has to finish in when it is drained.
GRACE_S = 2.0

# What a row of the table is kept as in its test's report, which also comes from other processes.
ROW = "fault case"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory):
    """Two workers of each stage behind a gateway; each case mends what it breaks."""
    async with cluster(tmp_path_factory.mktemp("cluster"), grace=GRACE_S) as made:
        yield made


@dataclass
class Scene:
    """What a case plays with: running processes, a caller, and a place to say what was seen."""

    cluster: Cluster
    caller: Caller
    watchers: list[Watcher]
    # What the first worker of each stage is reached over, where that can be broken.
    networks: dict[str, Any] = field(default_factory=dict)

    def watch(self, name: str) -> Watcher:
        self.watchers.append(Watcher(self.cluster.address, name))
        return self.watchers[-1]


@asynccontextmanager
async def mended(started: Cluster) -> AsyncIterator[Scene]:
    """The processes as a case finds them: all alive, known to the gateway and trusted by it."""
    await started.mend()
    gateway = started.gateway.pid
    async with Caller(started.address) as caller:
        await caller.sees_workers(2)
        made = Scene(started, caller, [])
        yield made
        for watcher in made.watchers:
            await watcher.close()
        await started.mend()
        # One that has just begun trusts everybody.
        if started.gateway.pid == gateway:
            await trust_again(started, caller)


async def trust_again(started: Cluster, caller: Caller) -> None:
    """Has every worker make a picture: until then the gateway is wary of those that a case has harmed."""
    missing = set(started.known_addresses)
    while missing:
        await caller.sees_workers(2)
        name = await caller.create(spec(images=4, preview_every=0))
        log = await replay(started.address, name)
        missing -= {event.stage_started.worker for event in log if event.HasField("stage_started")}


@pytest_asyncio.fixture(loop_scope="module")
async def scene(started):
    async with mended(started) as made:
        yield made


@pytest.fixture
def row(request):
    """Notes what a case showed, for the table at the end."""
    began = time.monotonic()
    noted: list[str] = []
    yield noted.append
    case = request.node.name.removeprefix("test_")
    took_s = time.monotonic() - began
    failed = getattr(request.node, "outcome_of_call", "passed") != "passed"
    shown = (
        request.node.path.stem.removeprefix("test_"),
        case,
        "FAILED" if failed else "holds",
        f"{took_s:.1f} s",
        "; ".join(noted),
    )
    request.node.user_properties.append((ROW, shown))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.outcome_of_call = report.outcome
    return report


def pytest_terminal_summary(terminalreporter):
    rows = sorted(
        shown
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown"
        for name, shown in report.user_properties
        if name == ROW
    )
    if not rows:
        return
    head = ("file", "case", "result", "took", "what it showed")
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(4)]
    terminalreporter.section("fault cases")
    for line in (head, *rows):
        terminalreporter.write_line(
            "  ".join([*(part.ljust(width) for part, width in zip(line[:4], widths, strict=True)), line[4]])
        )
    holds = sum(row[2] == "holds" for row in rows)
    terminalreporter.write_line(f"{holds} of {len(rows)} cases hold")
