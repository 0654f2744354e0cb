"""The example in docs/protocol.md, run as its reader would: another process, and nothing but the stubs."""

import asyncio
import re
import sys
from pathlib import Path

from tests.gateway.fake_stage import png

ROOT = Path(__file__).parent.parent.parent


def example() -> str:
    """The first Python program of the page."""
    page = (ROOT / "docs" / "protocol.md").read_text("utf-8")
    return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]


async def start_example(gateway, folder: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        example(),
        gateway.address,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_the_example_sees_previews_and_the_end(gateway, tmp_path):
    gateway.generator.close_gates(0)
    process = await start_example(gateway, tmp_path)
    while not (await process.stdout.readline()).startswith(b"preview of 1 0"):
        assert process.returncode is None
    gateway.generator.gates[0].set()
    rest, _ = await process.communicate()
    assert rest.decode().splitlines()[-1] == "RUN_STATE_SUCCEEDED"


async def test_the_example_writes_the_pictures(gateway, tmp_path):
    process = await start_example(gateway, tmp_path)
    await process.communicate()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{stage}-{i}.png" for stage in ("generate", "refine") for i in range(4)} | {
        "upscale-0.png"
    }
    assert (tmp_path / "generate-0.png").read_bytes() == png(7)


async def test_killing_the_example_s_process_stops_the_work(gateway, tmp_path):
    gateway.generator.close_gates(0, 1, 2, 3)
    process = await start_example(gateway, tmp_path)
    await gateway.generator.begun[3].wait()
    process.kill()
    await process.communicate()
    for index in range(4):
        await gateway.generator.stopped[index].wait()
    assert sorted(gateway.generator.cancelled) == [0, 1, 2, 3]
