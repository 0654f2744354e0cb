"""How tests start the command line in a process of its own."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "triptych", *arguments]


def environment(**extra: str) -> dict[str, str]:
    """Ours without what a developer may have set for the command line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIPTYCH_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra
