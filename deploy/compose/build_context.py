"""The folder of docker-compose.yml, from which the container images are built.

In a checkout it is the checkout. The wheel of the server has the same files but for the client's code, so here a folder
with both is put together below the user's cache.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import triptych
from deploy.deployer import DeployError
from services.weights.cache import user_cache
from triptych._installation import server_folder

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def compose_folder() -> Path:
    """A folder with docker-compose.yml and all that its images need. Raises DeployError when the server has none."""
    server = server_folder()
    if server is None or not (server / "docker-compose.yml").is_file():
        raise DeployError(
            "expected docker-compose.yml beside the server's code, found none; use --compose-file"
        )
    return server if (server / "triptych").is_dir() else _assemble(server, Path(triptych.__file__).parent)


def _assemble(server: Path, client: Path) -> Path:
    """Both trees in one folder, whose name changes with their files: an older one may be in use by a build."""
    folder = user_cache() / "build" / _state_of(server, client)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            copied = Path(temporary) / "source"
            shutil.copytree(server, copied, ignore=_IGNORED)
            shutil.copytree(client, copied / "triptych", ignore=_IGNORED)
            # A wheel has it in one place only.
            package = copied / "packages" / "server" / "triptych_server"
            package.mkdir(parents=True)
            (copied / "__init__.py").rename(package / "__init__.py")
            try:
                copied.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker
                    raise
    return folder


def _state_of(*folders: Path) -> str:
    """Changes whenever an installation changes a file."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                stat = path.stat()
                digest.update(f"{os.fspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
