"""The two wheels as folders, linked from the tree by the tables that their builds use."""

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "pyproject.toml"
SERVER = ROOT / "packages" / "server" / "pyproject.toml"


def read_pyproject(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def wheel_files(pyproject: Path) -> dict[Path, str]:
    """What the build hook adds to a wheel: files and folders of the tree, by their path in the wheel."""
    hooks = read_pyproject(pyproject)["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
    return {
        (pyproject.parent / source).resolve(): target for source, target in hooks["custom"]["files"].items()
    }


def lay_out(site: Path, *, server: bool) -> None:
    """Fills `site` as pip would with the client's wheel and, if wanted, the server's."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "triptych").symlink_to(ROOT / "triptych")
    if server:
        package = site / "triptych_server"
        package.mkdir()
        (package / "__init__.py").symlink_to(SERVER.parent / "triptych_server" / "__init__.py")
        for source, target in wheel_files(SERVER).items():
            (site / target).parent.mkdir(parents=True, exist_ok=True)
            (site / target).symlink_to(source)


def lay_traps(folder: Path) -> None:
    """Modules of a user's own, in the folder that a command is run in: to import one ends the process."""
    for name in ("services", "deploy"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("import os\nos._exit(99)\n")
    for name in ("gateway", "triptych_server", "click", "grpc", "venv"):
        (folder / f"{name}.py").write_text("import os\nos._exit(99)\n")
