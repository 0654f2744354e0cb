"""Writes a journal with runs in every state by the code that is imported: `python -m tests.gateway.journal.write_journal FOLDER`.

The files in journals/ were written so, in a checkout of the version that they are named after. FOLDER gets a dump of each
database, as it stands while the gateway still runs: as after a crash. `pictures.json` has the
files of both, by their hashes.
"""

import asyncio
import base64
import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.runs.admission import AdmissionLimits
from gateway.runs.manager import RunLimits
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.planning.test_masks import MASK, begin, masked
from tests.gateway.postgresql import new_database, postgresql_server
from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import RunSpec, RunState, SelectImagesRequest
from triptych.v1.stage_pb2 import StageEvent

SKETCHES = {"refine": None, "upscale": None}
# The index of a picture that is never finished, and of one that fails.
ENDLESS, FAILING = 7, 5
# With them the last run waits for the one before.
BOUNDS = RunLimits(AdmissionLimits(max_running=1), abandon_grace_s=3600)


async def write_runs(gateway) -> None:
    """One run of each kind; the request_id names it."""
    facade = gateway.facade
    gateway.generator.close_gates(ENDLESS)
    gateway.generator.failures[FAILING] = StageEvent.ImageFailure(
        index=FAILING, reason="BROKEN", message="broke"
    )

    async def make(request_id: str, asked: RunSpec) -> str:
        return (await facade.create_run(request_id, asked, ALL)).name

    await run_finished(gateway, await make("succeeded", spec()))
    await run_finished(gateway, await make("masked", masked(MASK)))
    await run_finished(gateway, await make("partial", spec(**SKETCHES, generate={"count": FAILING + 1})))
    gateway.generator.failures |= {
        index: StageEvent.ImageFailure(index=index, reason="BROKEN", message="broke") for index in range(2)
    }
    await run_finished(gateway, await make("failed", spec(**SKETCHES)))
    for index in range(2):
        del gateway.generator.failures[index]
    selected = await make("selected", spec(**SKETCHES))
    await run_finished(gateway, selected)
    selection = SelectImagesRequest.Selection(image=f"{selected}/images/generate-1", refine={"count": 1})
    await facade.select_images("again", selected, [selection], ALL)
    await run_finished(gateway, selected)
    waiting = await make("awaiting", spec(manual={}))
    await gateway.runs.live(waiting).wait()
    expired = await make("expired", spec(**SKETCHES))
    await run_finished(gateway, expired)
    await asyncio.gather(*gateway.runs._tasks)
    await gateway.runs.journal.delete_run(expired, expired_at=time.time())
    for request_id in ("cancelled", "running"):
        num_ready = 0
        endless = await make(request_id, spec(generate={"count": ENDLESS + 1}, automatic={}))
        async for event in facade.watch_run(endless, ALL):
            num_ready += event.HasField("image_ready")
            if num_ready == ENDLESS - 1:
                break
        if request_id == "cancelled":
            await facade.cancel_run(endless, ALL)
    await make("queued", spec(**SKETCHES))
    (last, *_), _ = await facade.list_runs(ALL)
    assert last.state == RunState.RUN_STATE_QUEUED


async def main(folder: Path) -> None:
    with postgresql_server() as server, TemporaryDirectory() as name:
        files = Path(name)
        for address in (str(files / "journal.db"), await new_database(server)):
            async with scripted_stages() as stages:
                await begin(stages)
                async with gateway_over(stages, files, journal=address, bounds=BOUNDS) as gateway:
                    await write_runs(gateway)
                    dump = dump_postgresql if "://" in address else dump_sqlite
                    kind = "postgresql" if "://" in address else "sqlite"
                    await asyncio.to_thread(lambda: (folder / f"{kind}.sql").write_text(dump(address)))  # noqa: B023 - awaited
        await asyncio.to_thread(write_pictures, files / "pictures", folder / "pictures.json")


def dump_sqlite(address: str) -> str:
    with closing(sqlite3.connect(address)) as source:
        return "\n".join(source.iterdump()) + "\n"


def dump_postgresql(address: str) -> str:
    command = ["pg_dump", "--no-owner", "--inserts", address]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # psql's own commands, and settings of newer servers, would tie it to one version.
    unwanted = ("--", "\\", "SET ", "SELECT pg_catalog.set_config")
    lines = [line for line in dump.splitlines() if line and not line.startswith(unwanted)]
    return "\n".join(lines) + "\n"


def write_pictures(store: Path, to: Path) -> None:
    pictures = {
        path.parent.name + path.name: base64.b64encode(path.read_bytes()).decode()
        for path in store.glob("??/*")
    }
    to.write_text(json.dumps(pictures, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
