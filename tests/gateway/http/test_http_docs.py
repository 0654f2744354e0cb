"""The examples in docs/http.md, run as their reader would."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import pytest

from gateway.http.app import ROUTES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "http.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8080"


async def run(*command, folder, **more):
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **more
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_program_with_the_openai_package_works(painter, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    output = await run(sys.executable, "-c", program.replace(ADDRESS, painter.url), folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"seed-7.png", "seed-8.png", "edited.png"}
    assert [line.split()[0].rpartition(".")[2] for line in output.splitlines()] == [
        "partial_image",
        "partial_image",
        "partial_image",
        "completed",
    ]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_the_calls_with_curl_work(painter, tmp_path):
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    create, *rest = script.replace(ADDRESS, painter.url).replace("\\\n", "").strip().splitlines()
    name = re.search(r'"name":"runs/(\w+)"', await run("sh", "-c", create, folder=tmp_path))[1]
    watch, download = (line.replace("/ID/", f"/{name}/") for line in rest)
    assert '"finished"' in await run("sh", "-c", watch, folder=tmp_path)
    await run("sh", "-c", download, folder=tmp_path)
    assert (tmp_path / "generate-0").read_bytes().startswith(b"\x89PNG")


def test_the_page_names_every_route():
    for route in ROUTES:
        path = route.path.replace(":path", "") or "/"
        assert path.replace("{model}", "{id}") in PAGE, path
