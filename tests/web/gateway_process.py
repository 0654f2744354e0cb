"""The gateway as a process of its own, which a test can end and start again where it was."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class GatewayProcess:
    """`options` name its stages; what it keeps is in `folder`, or its pictures in `store`, its log in `folder`/gateway.log.

    `prefix`: a command that starts it, such as one with a disk of its own.
    """

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        *,
        has_examples: bool = False,
        store: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._store = store or folder / "pictures"
        self._prefix = prefix
        self._options = [*options, *(() if has_examples else ("--no-examples",))]
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Returns when it serves; at the port that it had, where it had one."""
        keeping = ["--journal", str(self._folder / "journal.db"), "--store", str(self._store)]
        ports = ["--port", "0", "--http-port", str(self._port)]
        with (self._folder / "gateway.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    *self._prefix,
                    sys.executable,
                    "-m",
                    "triptych",
                    "serve",
                    "gateway",
                    "--grace",
                    "0",
                    "--exit-with-parent",
                ),
                *(*ports, *keeping, *self._options),
                cwd=ROOT,
                env={key: value for key, value in os.environ.items() if not key.startswith("TRIPTYCH_")},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        said = await self._process.stdout.readline()
        assert said, (self._folder / "gateway.log").read_text()
        self._port = int(json.loads(said)["http"].rpartition(":")[2])

    async def kill(self) -> None:
        """As a machine that loses its power."""
        if self._process is not None and self.is_alive:
            self._process.kill()
            await self._process.communicate()
