"""Both wheels as they are installed, beside programs and modules of a user's own."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import triptych
from tests.packages.layout import CLIENT, ROOT, SERVER, lay_out, lay_traps, read_pyproject, wheel_files

# `triptych`, started as its script is: no folder of the user's is on the path.
COMMAND = [sys.executable, "-P", "-m", "triptych"]
DOCKER = """#!/bin/sh
echo '{"Name": "this", "NCPU": 2, "MemTotal": 8000000000}'
"""


def run(arguments: list[str], folder: Path, site: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIPTYCH_")}
    environment = kept | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user works: a program with modules of the server's names."""
    lay_traps(tmp_path / "program")
    return tmp_path / "program"


@pytest.fixture
def client_site(tmp_path: Path) -> Path:
    lay_out(tmp_path / "site", server=False)
    return tmp_path / "site"


@pytest.fixture
def server_site(tmp_path: Path) -> Path:
    lay_out(tmp_path / "site", server=True)
    return tmp_path / "site"


def test_both_wheels_have_the_version_of_the_code():
    client, server = read_pyproject(CLIENT)["project"], read_pyproject(SERVER)["project"]
    assert client["version"] == server["version"] == triptych.__version__
    assert f"triptych=={triptych.__version__}" in server["dependencies"]


@pytest.mark.parametrize("pyproject", [CLIENT, SERVER], ids=["client", "server"])
def test_the_files_of_a_wheel_exist_and_stay_in_its_own_package(pyproject):
    package = read_pyproject(pyproject)["project"]["name"].replace("-", "_")
    for source, target in wheel_files(pyproject).items():
        assert source.exists(), source
        assert target.partition("/")[0] == package


def test_the_extra_all_has_every_library_but_those_of_nvidia_and_of_heic():
    """HEIC's wheels contain x265 (GPL), so it is installed by name alone."""
    extras = read_pyproject(SERVER)["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.partition("[")[2].strip("]").split(",")) == set(extras) - {"all", "cuda", "heic"}


def test_a_program_with_modules_of_these_names_imports_the_client_and_keeps_its_own(tmp_path, server_site):
    program = tmp_path / "mine"
    program.mkdir()
    for name in ("services", "gateway", "deploy"):
        (program / f"{name}.py").write_text("MINE = True\n")
    (program / "main.py").write_text(
        "import triptych.client, triptych.blocking\nimport services, gateway, deploy\n"
        "assert services.MINE and gateway.MINE and deploy.MINE\nprint('ok')\n"
    )
    done = run([sys.executable, "main.py"], program, server_site)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_modules_that_are_installed_beside_the_server_do_not_get_in_its_way(folder, server_site):
    lay_traps(server_site / "others")
    path = os.pathsep.join([str(server_site), str(server_site / "others")])
    (server_site / "others" / "grpc.py").unlink()
    (server_site / "others" / "click.py").unlink()
    done = run([*COMMAND, "serve", "gateway", "--help"], folder, Path(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Serve the pipeline" in done.stdout


def test_child_processes_import_nothing_from_the_working_directory(folder, server_site):
    script = (
        "import asyncio\n"
        "from triptych.cli.processes import launch\n"
        "async def main():\n"
        "    child = await launch('gateway', ['--port', '0', '--journal', 'none'])\n"
        "    try:\n"
        "        print((await child.ready()).service)\n"
        "    finally:\n"
        "        await child.stop()\n"
        "asyncio.run(main())\n"
    )
    done = run([sys.executable, "-P", "-c", script], folder, server_site)
    assert (done.stdout, done.returncode) == ("gateway\n", 0), done.stderr


def test_the_client_alone_explains_how_to_install_the_server(folder, client_site):
    for arguments in (["serve", "refiner"], ["deploy", "compose", "plan"], ["run", "a red house"]):
        done = run([*COMMAND, *arguments], folder, client_site)
        assert done.returncode == 1
        assert "expected the server beside the client" in done.stderr
        assert f"pip install 'triptych_server-{triptych.__version__}-py3-none-any.whl[all]'" in done.stderr


def test_the_client_alone_runs_what_needs_no_server(folder, client_site):
    assert run([*COMMAND, "--help"], folder, client_site).returncode == 0
    done = run([*COMMAND, "health", "127.0.0.1:1"], folder, client_site)
    assert "nobody answers there" in done.stderr


def test_a_missing_library_is_reported_with_the_line_that_installs_everything(folder, server_site):
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['triptych', 'serve', 'refiner']; import triptych.__main__"
    done = run([sys.executable, "-P", "-c", code], folder, server_site)
    wheel = f"triptych_server-{triptych.__version__}-py3-none-any.whl[all]"
    assert done.stderr == (
        f"Error: torch is not installed, and this command needs it; run: pip install {shlex.quote(wheel)}\n"
    )


def test_compose_builds_from_a_folder_with_the_code_of_both_wheels(folder, server_site, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER)
    (programs / "docker").chmod(0o755)
    done = run(
        [*COMMAND, "deploy", "compose", "plan"],
        folder,
        server_site,
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        TRIPTYCH_CACHE=str(tmp_path / "cache"),
    )
    assert "engine this: 2 cores, 8 GB" in done.stdout, done.stderr
    (context,) = (tmp_path / "cache" / "build").iterdir()
    copied = {
        source
        for line in (ROOT / "deploy" / "Dockerfile").read_text("utf-8").splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    assert "packages/server/triptych_server" in copied
    for source in copied:
        assert list(context.glob(source)), source
