"""Disks that are small, full or slow, seen by one process alone; they vanish with the process that holds them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class SmallDisk:
    """A file system of its own, of so many bytes, at `path` for a process that is started with `prefix`."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        script = f'mount -t tmpfs -o size={num_bytes} tmpfs "$0" && echo made && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"made\n", "no file system can be mounted"

    @property
    def prefix(self) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--"]

    @property
    def from_here(self) -> Path:
        """The same folder, for the test."""
        return Path(f"/proc/{self._holder.pid}/root{self.path}")

    def fill(self) -> None:
        with (self.from_here / "filler").open("wb", buffering=0) as filler:
            for size in (2**16, 2**12, 1):
                with suppress(OSError):  # the disk is full
                    while True:
                        filler.write(bytes(size))

    def free(self) -> None:
        (self.from_here / "filler").unlink(missing_ok=True)

    def make_read_only(self) -> None:
        self._remount("ro")

    def make_writable(self) -> None:
        self._remount("rw")

    def _remount(self, mode: str) -> None:
        command = [*self.prefix, "mount", "-o", f"remount,{mode}", str(self.path)]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[SmallDisk]:
    made = SmallDisk(path, num_bytes)
    try:
        yield made
    finally:
        made.close()


def why_no_small_disk(folder: Path) -> str:
    """Empty where a file system can be mounted."""
    if os.geteuid():
        return "only root may mount a file system"
    if missing := [name for name in ("unshare", "nsenter", "mount") if not shutil.which(name)]:
        return f"there is no {missing[0]} here"
    try:
        with small_disk(folder / "tried", 2**16):
            return ""
    except (OSError, AssertionError) as error:
        return f"this machine mounts no file systems: {error}"


def slow_disk_prefix(delay_s: float, log: Path) -> list[str]:
    """What makes every sync to the disk of a command take that long."""
    inject = f"inject=fsync,fdatasync:delay_enter={int(delay_s * 1e6)}"
    return ["strace", "--follow-forks", "--quiet=all", "--seccomp-bpf", "--output", str(log), "--trace=fsync,fdatasync", "-e", inject]  # fmt: skip


def why_no_slow_disk(folder: Path) -> str:
    if not shutil.which("strace"):
        return "there is no strace here"
    command = [*slow_disk_prefix(0.01, folder / "tried.log"), "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return "" if done.returncode == 0 else f"strace cannot be used here: {done.stderr.strip()[:200]}"
