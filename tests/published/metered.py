"""Runs `triptych weights` commands in this process, one after another, and prints what each took, as a line of JSON.

    python -m tests.published.metered FOLDER '["convert", "weights.pt", "model", "--part", "unet"]' ...

`memory` is how far the process grew while the command ran, with all libraries imported before; `disk` the most that
lay in FOLDER. Linux alone can tell.
"""

import importlib
import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from services.weights.command import weights
from services.weights.conversion import conversion_module

# What a conversion imports; not its memory.
LIBRARIES = ("httpx", "filelock", "huggingface_hub", "boto3", "rich.progress")


def main(folder: Path, commands: list[list[str]], stage: str) -> None:
    for library in LIBRARIES:
        importlib.import_module(library)
    # unCLIP is an architecture of the generator.
    conversion_module(*(("generator", "convert", "unclip") if stage == "unclip" else (stage, "convert")))
    load_what_is_loaded_late(stage)
    for command in commands:
        with suppress(PermissionError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, started = memory("VmRSS"), time.monotonic()
        watch = DiskWatch(folder)
        error = ""
        try:
            weights(command, standalone_mode=False)
        except Exception as found:  # noqa: BLE001 - a refusal is a result, too
            error = f"{type(found).__name__}: {found}"
        spent = time.monotonic() - started
        report = {"memory": memory("VmHWM") - before, "disk": watch.stop(), "seconds": spent, "error": error}
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def load_what_is_loaded_late(stage: str) -> None:
    """A network without memory for its weights takes 800 modules of torch's, sympy among them, when the first is made."""
    if stage == "refiner":
        from services.refiner.conversion.random_weights import TINY
        from services.refiner.model import empty_network

        for part, config in TINY.items():
            empty_network(part, config, Path("tiny"))
    if stage == "unclip":
        from services.generator.unclip.conversion.random_weights import TINY
        from services.generator.unclip.model import NETWORKS
        from services.pytorch.parts import empty_network
        from services.weights.command import random_makers

        # It asks every stage for the families that it knows.
        random_makers("karlo", None)
        for part, config in TINY.items():
            empty_network(NETWORKS[part][1], config, Path("tiny"), part)
    if stage == "upscaler":
        from services.upscaler.conversion.random_weights import CONFIGS
        from services.upscaler.model import shapes_of

        shapes_of(CONFIGS["tiny"])


def memory(name: str) -> int:
    [line] = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


class DiskWatch:
    """The most bytes that lay in a folder, looked at often."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._most = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._most

    def _look(self) -> None:
        while True:
            self._most = max(self._most, used(self._folder))
            if self._stopped.wait(0.05):
                self._most = max(self._most, used(self._folder))
                return


def used(folder: Path) -> int:
    """Files that are not filled yet count as far as they are."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total


if __name__ == "__main__":
    main(Path(sys.argv[2]), [json.loads(argument) for argument in sys.argv[3:]], sys.argv[1])
