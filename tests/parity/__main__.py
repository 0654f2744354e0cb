"""`python -m tests.parity`: makes the oracles' environments below .venv-parity, then runs the tests that ask them.

The oracles are published packages with pins of their own, so none of them can live beside the project: one
environment for DALL·E Mini (jax 0.4.28, flax 0.8.3, transformers 4.25.1), one for diffusers, transformers and spandrel.
"""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parents[1] / ".venv-parity"
# The arguments of pip for each environment, in turn.
INSTALLS: dict[str, Sequence[Sequence[str]]] = {
    "jax": [["--no-deps", "-r", str(HERE / "requirements-jax.txt")]],
    # min-dalle is timed by tests/bench, which shares this environment.
    "torch": [
        ["-r", str(HERE / "requirements-torch.txt")],
        ["--no-deps", "spandrel==0.4.2", "min-dalle==0.4.11", "emoji==2.16.0"],
    ],
}


def python_of(environment: str) -> Path:
    return ENVIRONMENTS / environment / "bin" / "python"


def install(environment: str) -> None:
    """Does nothing when the environment holds what the requirements ask for."""
    wanted = (HERE / f"requirements-{environment}.txt").read_bytes() + repr(INSTALLS[environment]).encode()
    stamp = ENVIRONMENTS / environment / "installed"
    digest = hashlib.sha256(wanted).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    print(f"parity: installing {ENVIRONMENTS / environment} (once)", flush=True)
    venv.create(ENVIRONMENTS / environment, with_pip=True, clear=True)
    pip = [str(python_of(environment)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for arguments in INSTALLS[environment]:
        subprocess.run([*pip, *arguments], check=True)
    stamp.write_text(digest)


def main() -> None:
    for environment in INSTALLS:
        install(environment)
    # An oracle computes for all the tests of its file while the first of them waits.
    tests = [sys.executable, "-m", "pytest", "-m", "parity", "--timeout", "3600", str(HERE), *sys.argv[1:]]
    sys.exit(subprocess.run(tests, check=False).returncode)


if __name__ == "__main__":
    main()
