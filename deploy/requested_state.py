"""The requested state of a deployment: how many workers of each stage, and how its gateway was started.

`up` and `scale` store it, `status` compares with it, `watch` restores it, and `down` deletes it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from deploy.deployer import STAGES, DeployError
from services.private_files import FILE_MODE, make_private_folder
from services.weights.model_folder import write_atomically
from triptych._files import read_file

FILE = "requested.json"
LOCK = "lock"


@dataclass(frozen=True)
class GatewayRequest:
    """How the gateway is started; a port of 0 is any free port."""

    port: int
    http_port: int
    http_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Requested:
    """`gateway` is None until one was asked for."""

    workers: Mapping[str, int] = field(default_factory=dict)
    gateway: GatewayRequest | None = None


class RequestedState:
    """Kept in the deployment's folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE

    def read(self) -> Requested | None:
        """None if nothing is stored. Raises DeployError for a file that is no such state."""
        try:
            content = json.loads(read_file(self._path))
            gateway = content["gateway"]
            return Requested(
                {stage: int(content["workers"][stage]) for stage in STAGES if stage in content["workers"]},
                _gateway(gateway) if gateway else None,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DeployError(f"cannot use {self._path}: {error}; delete it and run `up` again") from None

    def request_workers(self, workers: Mapping[str, int]) -> None:
        """Changes the counts of these stages."""
        now = self.read() or Requested()
        self._write(Requested({**now.workers, **workers}, now.gateway))

    def request_gateway(self, gateway: GatewayRequest) -> None:
        now = self.read() or Requested()
        self._write(Requested(now.workers, gateway))

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While workers are counted and started, so that `scale` and `watch` do not both start what is missing."""
        make_private_folder(self._folder)
        with FileLock(self._folder / LOCK, mode=FILE_MODE):
            yield

    def check_owner(self) -> None:
        """Raises DeployError if the folder belongs to another user of this machine, as it can for root."""
        for path in (self._folder, self._path):
            if path.exists() and hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
                raise DeployError(
                    f"{path} belongs to the user {_user(path)}, and so does this deployment: choose another --name"
                )

    def _write(self, requested: Requested) -> None:
        self.check_owner()
        make_private_folder(self._folder)
        write_atomically(self._path, json.dumps(asdict(requested), indent=1).encode(), mode=FILE_MODE)


def _gateway(content: Mapping[str, Any]) -> GatewayRequest:
    return GatewayRequest(int(content["port"]), int(content["http_port"]), tuple(content["http_hosts"]))


def _user(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)
