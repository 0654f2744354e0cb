"""A process under attack: it may use so much memory, and another caller is served by it all the while.

The other caller asks for health and makes a small call of each API, again and again; the longest that one took counts.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20
START_TIMEOUT_S = 120.0


@dataclass
class Victim:
    """A gateway, or a stage, as a process of its own."""

    pid: int
    address: str
    http: str
    tokens: dict[str, str]
    memory_bytes: int
    folder: Path
    process: subprocess.Popen
    log: Path

    def rss(self) -> int:
        return _status(self.pid, "VmRSS")

    def peak(self) -> int:
        return _status(self.pid, "VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def metadata(self, caller: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[caller]}"),)


@dataclass
class Observed:
    """What an attack did to the process and to the other caller."""

    peak_bytes: int = 0
    longest_s: float = 0.0
    longest_call: str = ""
    num_calls: int = 0
    failures: list[str] = field(default_factory=list)


def _status(pid: int, name: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


@asynccontextmanager
async def gateway_victim(
    folder: Path,
    *arguments: str,
    memory_bytes: int = 1024 * MIB,
    callers: Sequence[str] = ("bystander", "attacker"),
    prefix: Sequence[str] = (),
) -> AsyncIterator[Victim]:
    """`triptych serve gateway` with tokens and both APIs; it is ended when it takes more than `memory_bytes`.

    `prefix` starts it in another way; `arguments` may name another journal and store than those in the folder.
    """
    tokens = {name: _token(folder / "tokens.json", name) for name in callers}
    command = [
        *("serve", "gateway", "--port", "0", "--http-port", "0", "--tokens", str(folder / "tokens.json")),
        *("--journal", str(folder / "journal.db"), "--store", str(folder / "pictures"), "--grace", "1"),
        *arguments,
    ]
    async with _victim(folder, command, memory_bytes, tokens, prefix) as victim:
        yield victim


@asynccontextmanager
async def stage_victim(folder: Path, stage: str, memory_bytes: int) -> AsyncIterator[Victim]:
    """`triptych serve STAGE` with the built-in model."""
    command = ["serve", stage, "--port", "0", "--threads", "1", "--grace", "1"]
    async with _victim(folder, command, memory_bytes, {}) as victim:
        yield victim


@asynccontextmanager
async def _victim(
    folder: Path,
    command: Sequence[str],
    memory_bytes: int,
    tokens: dict[str, str],
    prefix: Sequence[str] = (),
) -> AsyncIterator[Victim]:
    log = folder / "victim.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - once, before anything is served
            [*prefix, sys.executable, "-m", "triptych", *command],
            stdout=subprocess.PIPE, stderr=output, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line, log.read_text()
    said = json.loads(line)
    victim = Victim(
        process.pid, said["address"], said.get("http", ""), tokens, memory_bytes, folder, process, log
    )
    limiting = asyncio.create_task(_end_beyond_memory(victim))
    try:
        yield victim
    finally:
        limiting.cancel()
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()


async def _end_beyond_memory(victim: Victim) -> None:
    """As the kernel does for a container: needs no rights, and other tests go on."""
    while victim.is_alive:
        if victim.rss() > victim.memory_bytes:
            victim.process.kill()
            return
        await asyncio.sleep(0.01)


class Bystander:
    """The other caller's process, asked after each attempt how it was served."""

    def __init__(self, victim: Victim, process: asyncio.subprocess.Process) -> None:
        self._victim = victim
        self._process = process

    async def observe(self) -> Observed:
        """What has happened since the last time, to it and to the victim's memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        line = await self._process.stdout.readline()
        assert line, "the other caller's process ended"
        served = json.loads(line)
        observed = Observed(self._victim.peak(), **served)
        if not self._victim.is_alive:
            observed.failures.insert(0, f"the process ended with {self._victim.process.returncode}")
        with suppress(OSError):
            self._victim.reset_peak()
        return observed


@asynccontextmanager
async def serving_bystander(victim: Victim) -> AsyncIterator[Bystander]:
    """Has another caller served inside the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attacks.bystander", victim.address, victim.http),
        victim.tokens.get("bystander", ""),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    bystander = Bystander(victim, process)
    try:
        # Its start takes longer than any of its calls.
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (await bystander.observe()).num_calls:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        yield bystander
    finally:
        process.kill()
        await process.wait()


def _token(path: Path, caller: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "triptych", "tokens", "add", caller, "--tokens", str(path)],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    return done.stdout.strip()
