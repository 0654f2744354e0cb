"""Installs each wheel into an empty environment elsewhere and uses it: `make test-wheels`.

    python -m tests.packages.installed dist                                   # libraries come from the package index
    python -m tests.packages.installed dist --site .venv/lib/python3.11/site-packages    # or from there

The client is tried against a gateway over scripted stages, the server with a run of its own built-in models.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.packages.layout import ROOT, lay_traps
from tests.packages.test_layout import DOCKER

# A program of a user's, which mypy checks against the installed types. The ignored line is an error that it must see.
PROGRAM = """\
import asyncio
import sys

import services

from triptych.blocking import Client as BlockingClient
from triptych.client import Client
from triptych.result import Picture, RunResult
from triptych.spec import make_spec


async def main(address: str) -> None:
    spec = make_spec("a red house", seed=7, candidates=2, variations=1)
    async with Client(address) as client:
        result: RunResult = await client.run(spec)
        pictures: list[Picture] = list(result.pictures)
        wrong: int = result.name  # type: ignore[assignment]
        print(result.state, len(pictures), services.MINE)


asyncio.run(main(sys.argv[1]))
with BlockingClient(sys.argv[1]) as blocking:
    print(len(list(blocking.list_runs())))
"""


class Environment:
    """A virtual environment in a folder of its own."""

    def __init__(self, folder: Path, site: Path | None) -> None:
        self.folder = folder
        self._site = site
        venv.create(folder, with_pip=True)
        if site is not None:
            # After its own: what is installed here wins.
            (site_path,) = folder.glob("lib/python*/site-packages")
            (site_path / "zz_libraries.pth").write_text(f"{site}\n")

    def install(self, wheels: Sequence[str]) -> None:
        options = ["--no-deps"] if self._site is not None else ["-c", str(ROOT / "constraints.txt")]
        self.run(self.folder, "python", "-m", "pip", "install", "--quiet", *options, *wheels)

    def run(self, cwd: Path, program: str, *arguments: str, code: int = 0, **variables: str) -> str:
        """What it prints, on both streams. Another exit code than `code` is a failure."""
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == code, (
            f"{program} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        )
        return done.stdout


@contextmanager
def scripted_gateway() -> Iterator[str]:
    """The address of a gateway over scripted stages, run from the tree."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.triptych.gateway_process"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.stdin.close()
        process.wait(30)


def check_client(folder: Path, wheel: Path, site: Path | None) -> None:
    environment = Environment(folder / "client", site)
    environment.install([str(wheel)])
    work = folder / "client-work"
    work.mkdir()
    (work / "services.py").write_text("MINE = True\n")
    (work / "program.py").write_text(PROGRAM)
    with scripted_gateway() as address:
        said = environment.run(work, "python", "program.py", address)
        assert said == "succeeded 4 True\n1\n", said
        environment.run(work, "triptych", "run", "a red house", "--gateway", address, "--out", "pictures")
        assert (work / "pictures" / "contact-sheet.png").stat().st_size > 0
    said = environment.run(work, "triptych", "serve", "refiner", code=1)
    assert f"pip install '{wheel.parent}/triptych_server-" in said, said
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            environment.folder / "bin" / "python",
        ]
        + ["--cache-dir", folder / "mypy", "program.py"],
        cwd=work,
        check=True,
    )
    protos = 'import triptych, pathlib; print(len(list(pathlib.Path(triptych.__file__).parent.glob("v1/*.proto"))))'
    assert environment.run(work, "python", "-c", protos) == "5\n"


def check_server(folder: Path, wheels: Sequence[Path], site: Path | None) -> None:
    environment = Environment(folder / "server", site)
    client, server = sorted(map(str, wheels))
    environment.install([client, f"{server}[all]"])
    work = folder / "server-work"
    lay_traps(work)
    environment.run(
        work, "triptych", "run", "a red house", "--seed", "7", "--candidates", "2", "--out", "pictures"
    )
    assert (work / "pictures" / "upscale-0.png").stat().st_size > 0
    programs = folder / "programs"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    said = environment.run(work, "triptych", "deploy", "compose", "plan", PATH=path)
    assert "engine this: 2 cores, 8 GB" in said, said
    (context,) = (environment.folder / ".cache" / "triptych" / "build").iterdir()
    assert (context / "docker-compose.yml").is_file()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dist", type=Path, help="the folder of both wheels")
    parser.add_argument("--site", type=Path, help="a folder of installed libraries")
    arguments = parser.parse_args()
    wheels = sorted(arguments.dist.resolve().glob("*.whl"))
    assert len(wheels) == 2, (
        f"expected two wheels in {arguments.dist}, got {[wheel.name for wheel in wheels]}"
    )
    site = arguments.site and arguments.site.resolve()
    checks: dict[str, Callable[[Path], None]] = {
        "client": lambda folder: check_client(folder, wheels[0], site),
        "server": lambda folder: check_server(folder, wheels, site),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, check in checks.items():
            began = time.monotonic()
            check(Path(folder))
            print(f"{name}: passed in {time.monotonic() - began:.0f} s", flush=True)
    for wheel in wheels:
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
