"""Client of the bridge, a process in Meadowrun's environment.

What is asked, and what it means, it does not know.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.deployer import DeployError
from services.private_files import make_private_folder

# Its libraries take a minute where nothing else is to be had of a processor.
START_TIMEOUT_S = 300.0
# Of what the bridge writes to its log, in errors.
NUM_LAST_LINES = 8

Tell = Callable[[str], None]


class Bridge:
    """Starts when it is first asked. It ends by itself when `close` has been called and what drains has ended."""

    def __init__(
        self, command: Callable[[], Sequence[str]], log: Path, tell: Tell = lambda line: None
    ) -> None:
        """`command` may take its time; `tell` gets Meadowrun's output while it works."""
        self._command = command
        self._log = log
        self._tell = tell
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._pending: dict[int, Future[Any]] = {}
        self._num_asked = 0
        self._lock = threading.Lock()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Waits for the answer. Raises DeployError, in the bridge's words where it refuses."""
        return self.begin(do, **arguments)[1].result()

    def begin(self, do: str, **arguments: Any) -> tuple[int, Future[Any]]:
        """Asks; the answer is in the future. The number is what `cancel` takes."""
        with self._lock:
            process = self._running()
            self._num_asked += 1
            number, future = self._num_asked, Future[Any]()
            self._pending[number] = future
            assert process.stdin is not None  # noqa: S101 - for mypy
            try:
                process.stdin.write(json.dumps({"id": number, "do": do, "with": arguments}) + "\n")
                process.stdin.flush()
            except (OSError, ValueError):  # it has just ended; its pipe may be closed here, too
                self._give_up()
        return number, future

    def cancel(self, number: int) -> None:
        """Gives up a question: its future then fails, unless the answer was on its way."""
        self.ask("cancel", question=number)

    def close(self, *, timeout_s: float | None = 0.0) -> None:
        """Asks nothing more; None waits until what drains has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - for mypy
        with suppress(OSError):
            process.stdin.close()
        if self._reader is not None:
            # It ends with the process.
            self._reader.join(timeout_s)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        make_private_folder(self._log.parent)
        command = self._command()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own bridge
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # It has to outlive a Ctrl-C, and the end of the command that started it, where something drains.
                start_new_session=True,
            )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process, ready), daemon=True)
        self._reader.start()
        is_ready = ready.wait(START_TIMEOUT_S)
        if not is_ready or self._process.poll() is not None:
            self._process.kill()
            within = "" if is_ready else f" within {START_TIMEOUT_S:.0f} s"
            raise DeployError(f"Meadowrun does not start{within}:\n{self._last_words()}")
        return self._process

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None and process.stdin is not None  # noqa: S101, PT018 - for mypy
        with process.stdout as answers:
            for line in answers:
                said = json.loads(line)
                if "ready" in said:
                    ready.set()
                elif "said" in said:
                    self._tell(said["said"])
                elif future := self._pending.pop(said["id"], None):
                    if "failed" in said:
                        future.set_exception(DeployError(said["failed"]))
                    else:
                        future.set_result(said["done"])
        process.wait()
        with suppress(OSError):
            process.stdin.close()
        ready.set()
        self._give_up()

    def _give_up(self) -> None:
        while self._pending:
            with suppress(KeyError):
                _, future = self._pending.popitem()
                future.set_exception(DeployError(f"Meadowrun's process has ended:\n{self._last_words()}"))

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-NUM_LAST_LINES:])
