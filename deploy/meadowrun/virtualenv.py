"""Meadowrun's own virtual environment, made at its first use: it cannot share one with a protobuf or cryptography of today.

What is installed into it is pinned, all of it, in constraints.txt.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.deployer import DeployError
from services.weights.download import locked

VERSION = "0.2.16"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
# Written last: an environment without it is half of one.
READY = "triptych-ready"
NUM_LAST_LINES = 15

Tell = Callable[[str], None]


def default_folder() -> Path:
    """TRIPTYCH_MEADOWRUN, else in the user's data folder; one for each version of Python."""
    if root := os.environ.get("TRIPTYCH_MEADOWRUN"):
        return Path(root)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "triptych" / f"meadowrun-{VERSION}-python{sys.version_info.major}.{sys.version_info.minor}"


def ensure_environment(tell: Tell, folder: Path | None = None) -> Path:
    """The Python of the environment, which is made if there is none. Raises DeployError."""
    folder = folder or default_folder()
    python = folder / "bin" / "python"
    wanted = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()
    if _is_ready(folder, wanted):
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if _is_ready(folder, wanted):  # another process was quicker
            return python
        tell(f"Meadowrun gets an environment of its own, once: {folder} (150 MB, a few minutes)")
        _run([sys.executable, "-I", "-m", "venv", "--clear", str(folder)], tell)
        pinned = ["-c", str(CONSTRAINTS), f"meadowrun=={VERSION}", "setuptools"]
        _run(
            [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *pinned],
            tell,
        )
        (folder / READY).write_text(wanted)
    return python


def _is_ready(folder: Path, wanted: str) -> bool:
    ready = folder / READY
    return ready.is_file() and ready.read_text() == wanted


def _run(command: list[str], tell: Tell) -> None:
    """Runs a command: reports what is fetched, and the last lines if it fails."""
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 - python and pip, with a list of our own
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith(("Collecting", "Installing")):
                tell(f"  {line.strip()[:100]}")
    if process.returncode:
        last = "\n".join(lines[-NUM_LAST_LINES:])
        raise DeployError(
            f"Meadowrun could not be installed; with a Python that it works with (3.11 to 3.13), try again:\n{last}"
        )
