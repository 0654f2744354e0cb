"""What is tried on the command line with files: checkpoints, manifests and pictures that are none.

Each command is a process with a bound on memory and time. It must end with an error message: no traceback, no file of the
attacker's, nothing of what was there before changed.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.victim import MIB
from tests.published.hostile import attacks, compress, infect, replace_pickle

MODEL = Path("services/upscaler/models/tiny")
MEMORY_BYTES = 8192 * MIB  # of addresses: torch's libraries alone have 4 GiB of them
TIMEOUT_S = 120.0
# A pair of a pair of a pair ...: 2 ** 100 of them, each looked at for the hash of the key.
ENDLESS = b"\x80\x04})" + b"2\x86" * 100 + b"K\x01s."


@dataclass(frozen=True)
class FileAttempt:
    """`prepare` makes files in a folder and returns the arguments of `triptych`."""

    name: str
    prepare: Callable[[Path], list[str]]

    def attack(self, folder: Path) -> tuple[str, list[str]]:
        """What the command printed last, and what was wrong with how it ended."""
        arguments = self.prepare(folder)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "triptych", *arguments],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
                env={**os.environ, "OMP_NUM_THREADS": "1", "TRIPTYCH_CACHE": str(folder / "cache")},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "no end", [f"it ran for more than {TIMEOUT_S:g} s"]
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        problems = [] if done.returncode in (1, 2) else [f"it ended with {done.returncode}"]
        problems += ["a traceback"] if "Traceback" in done.stderr else []
        problems += ["code of the file ran"] if (folder / "marker").exists() else []
        return f"{done.returncode}, {said[:120]}", problems


def file_attempts() -> Iterator[FileAttempt]:
    for name in attacks(Path("marker")):
        yield FileAttempt(f"checkpoint: {name}", lambda folder, name=name: _infected(folder, name))
    for name, change in {
        "a pickle without an end": lambda source, target: replace_pickle(source, target, ENDLESS),
        "a pickle of nothing": lambda source, target: replace_pickle(source, target, b""),
        "a member of 4 GiB of zeros": lambda source, target: compress(source, target, "/data.pkl", 4096 * MIB),
        "half a file": lambda source, target: target.write_bytes(source.read_bytes()[: source.stat().st_size // 2]),
        "an empty file": lambda source, target: target.touch(),
        "a pipe": lambda source, target: os.mkfifo(target),
        "a folder": lambda source, target: target.mkdir(),
        "zeros": lambda source, target: target.write_bytes(bytes(MIB)),
    }.items():  # fmt: skip
        yield FileAttempt(f"checkpoint: {name}", lambda folder, change=change: _checkpoint(folder, change))
    for name, content in MANIFESTS.items():
        yield FileAttempt(f"manifest: {name}", lambda folder, content=content: _manifest(folder, content))
    for name in ("../escape", "/etc", "..", ".", "a/b", "a\\b", "-x", "x" * 300, " ", "a\nb"):
        yield FileAttempt(
            f"weights rm {name[:10]!r}",
            lambda folder, name=name: ["weights", "rm", "--stage", "upscaler", "--", name],
        )
    for name in ("tokens.json", "journal.db"):
        for kind, write in {
            "a pipe": os.mkfifo,
            "a folder": Path.mkdir,
            "zeros": lambda path: path.write_bytes(bytes(4096)),
            "deep JSON": lambda path: path.write_bytes(b"[" * 100_000),
            "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe" * 100),
        }.items():
            yield FileAttempt(
                f"{name}: {kind}", lambda folder, name=name, write=write: _place(folder, name, write)
            )


MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "deep": b'{"files": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of a million digits": b'{"name": ' + b"9" * 1_000_000 + b"}",
    "no UTF-8": b"\xff\xfe\x00",
    "NUL": b'{"name": "a\\u0000b"}',
    "half a surrogate": b'{"name": "\\ud800"}',
    "a list": b"[]",
    "no files": b'{"name": "x", "stage": "upscaler"}',
    "a file outside": json.dumps(
        {"name": "x", "stage": "upscaler", "files": {"../../secret": "0" * 64}}
    ).encode(),
    "an absolute file": json.dumps(
        {"name": "x", "stage": "upscaler", "files": {"/etc/passwd": "0" * 64}}
    ).encode(),
    "a stage that is none": b'{"name": "x", "stage": "../x", "files": {}}',
    "infinite numbers": b'{"name": "x", "stage": "upscaler", "files": {}, "config": {"scale": 1e999}}',
    "16 MiB of names": b'{"name": "' + b"x" * 16 * MIB + b'"}',
}


def _source(folder: Path) -> Path:
    # Imported late: it takes seconds, and the light half needs none of it.
    import torch

    source = folder / "source.pth"
    torch.save({"params_ema": {"weight": torch.zeros(4)}}, source)
    return source


def _infected(folder: Path, name: str) -> list[str]:
    infect(_source(folder), folder / "bad.pth", attacks(folder / "marker")[name])
    return ["weights", "convert", str(folder / "bad.pth"), str(folder / "made"), "--part", "swinir"]


def _checkpoint(folder: Path, change: Callable[[Path, Path], object]) -> list[str]:
    change(_source(folder), folder / "bad.pth")
    return ["weights", "convert", str(folder / "bad.pth"), str(folder / "made"), "--part", "swinir"]


def _manifest(folder: Path, content: bytes) -> list[str]:
    shutil.copytree(MODEL, folder / "model")
    (folder / "model" / "manifest.json").write_bytes(content)
    return ["weights", "verify", str(folder / "model")]


def _place(folder: Path, name: str, write: Callable[[Path], object]) -> list[str]:
    write(folder / name)
    if name == "tokens.json":
        return ["tokens", "list", "--tokens", str(folder / name)]
    return [
        "serve",
        "gateway",
        "--port",
        "0",
        "--journal",
        str(folder / name),
        "--store",
        str(folder / "pictures"),
    ]
