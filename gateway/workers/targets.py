"""Targets of workers: addresses, DNS names, and the workers file."""

import asyncio
import ipaddress
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.stages import STAGES, Stage
from triptych._files import read_file, stamp_of

log = logging.getLogger(__name__)

# A name server that takes longer is asked on, while what it said before counts.
RESOLVE_TIMEOUT_S = 5.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


@dataclass(frozen=True)
class Target:
    """Where workers are: one at host:port, or (`is_name`) one at every address that the name resolves to."""

    host: str
    port: int
    is_name: bool = False

    def __str__(self) -> str:
        return f"dns:{self.host}:{self.port}" if self.is_name else join(self.host, self.port)


def parse_target(text: str) -> Target:
    """Reads "host:port" or "dns:name:port"; raises ValueError with what was expected."""
    is_name = text.startswith("dns:")
    host, _, port = text.removeprefix("dns:").lstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"expected HOST:PORT or dns:NAME:PORT, got {text!r}")
    return Target(host, int(port), is_name)


def join(host: str, port: int) -> str:
    """ "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve_name(name: str, port: int) -> Sequence[str]:
    """Every address of a name; raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port)
    return sorted({str(ipaddress.ip_address(address[4][0])) for address in found})


class Resolver:
    """The addresses of targets as they are now. A name server that fails takes no worker away."""

    def __init__(self, resolve: Resolve = resolve_name) -> None:
        self._resolve = resolve
        self._resolved: dict[Target, list[str]] = {}
        self._resolving: dict[Target, asyncio.Future[Sequence[str]]] = {}
        # Why names have no address now, or not a new one.
        self.problems: dict[Target, str] = {}

    async def addresses(self, target: Target) -> list[str]:
        if not target.is_name:
            return [str(target)]
        # One question at a time: those that pile up would take all threads that ask.
        question = self._resolving.get(target)
        if question is None:
            question = asyncio.ensure_future(self._resolve(target.host, target.port))
            self._resolving[target] = question
        done, _ = await asyncio.wait([question], timeout=RESOLVE_TIMEOUT_S)
        if not done:
            self.problems[target] = "the name server does not answer"
            return self._resolved.get(target, [])
        del self._resolving[target]
        try:
            hosts = question.result()
        except OSError as error:
            self.problems[target] = f"the name does not resolve: {error.strerror or error}"
            return self._resolved.get(target, [])
        self.problems.pop(target, None)
        self._resolved[target] = [join(host, target.port) for host in hosts]
        return self._resolved[target]

    async def close(self) -> None:
        for question in self._resolving.values():
            question.cancel()
        await asyncio.gather(*self._resolving.values(), return_exceptions=True)


class WorkersFile:
    """A list of workers, written by a deployment: {"generator": ["host:port", "dns:name:port"], "refiner": [...], ...}.

    It is read again when it has changed. A file that cannot be read changes nothing.
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that is no such list."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._targets: dict[str, tuple[Target, ...]] = {}
        self._problem = ""
        self._read()

    async def targets(self, stage: Stage) -> Sequence[Target]:
        try:
            await asyncio.to_thread(self._read)
        except ValueError as error:
            if str(error) != self._problem:
                log.warning("%s; going on with the workers that it named before", error)
            self._problem = str(error)
        return self._targets.get(stage.worker_name, ())

    def _read(self) -> None:
        try:
            stamp = stamp_of(os.stat(self._path))
            if stamp == self._stamp:
                return
            self._targets = parse_workers(read_file(self._path).decode())
        except OSError as error:
            raise ValueError(f"{self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from None
        self._stamp, self._problem = stamp, ""
        log.info("%s names %s", self._path, {name: len(those) for name, those in self._targets.items()})


def parse_workers(text: str) -> dict[str, tuple[Target, ...]]:
    """Targets by worker's name; raises ValueError with what was expected."""
    names = [stage.worker_name for stage in STAGES]
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, got {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise ValueError("expected JSON of three levels, got one of too many") from None
    if not isinstance(listed, dict) or not set(listed) <= set(names):
        raise ValueError(f"expected an object with lists under {', '.join(names)}, got {text[:80]!r}")
    targets = {}
    for name, those in listed.items():
        if not isinstance(those, list) or not all(isinstance(one, str) for one in those):
            raise ValueError(f"expected a list of HOST:PORT or dns:NAME:PORT under {name}, got {those!r}")
        targets[name] = tuple(map(parse_target, those))
    return targets
