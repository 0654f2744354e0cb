"""A real PostgreSQL for tests: a server of its own in a temporary folder, reached by a socket there."""

import getpass
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# The server refuses to run as root.
USER = "postgres" if os.geteuid() == 0 else getpass.getuser()


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The folder of its socket; skips the test where there is no server to start."""
    initdb, postgres = _find("initdb"), _find("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed here")
    # A short name: a socket's path has at most 107 characters.
    with TemporaryDirectory(prefix="pg") as folder:
        as_user = {}
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, USER)
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            as_user = {"user": USER, "group": USER, "extra_groups": []}
        data = f"{folder}/data"
        subprocess.run(
            [initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd=folder,
            **as_user,
        )
        settings = [
            "listen_addresses=",
            f"unix_socket_directories={folder}",
            "fsync=off",
            "max_connections=60",
        ]
        options = [part for setting in settings for part in ("-c", setting)]
        with open(f"{folder}/log", "w") as log:
            server = subprocess.Popen([postgres, "-D", data, *options], stderr=log, cwd=folder, **as_user)
        try:
            _wait_until_it_serves(server, Path(folder))
            yield folder
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=120)


def _wait_until_it_serves(server: subprocess.Popen, folder: Path) -> None:
    ready = ["pg_isready", "-q", "-h", str(folder), "-t", "1"]
    while subprocess.run([_find("pg_isready") or "pg_isready", *ready[1:]], check=False).returncode != 0:
        if server.poll() is not None:
            raise RuntimeError((folder / "log").read_text())


def _find(program: str) -> str | None:
    places = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
