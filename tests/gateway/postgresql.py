"""A real PostgreSQL for tests: a server of its own in a temporary folder, reached by a socket there."""

import getpass
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest

# The server refuses to run as root.
USER = "postgres" if os.geteuid() == 0 else getpass.getuser()


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The folder of its socket; skips the test where there is no server to start."""
    initdb, postgres = _find("initdb"), _find("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL here; Debian and Ubuntu: apt-get install postgresql")
    # In memory where there is such a folder: each database has hundreds of files. A short name: a socket's path has at
    # most 107 characters.
    with TemporaryDirectory(
        prefix="pg", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:
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
            # At once: nobody needs its files any more.
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=120)


async def new_database(server: str, script: str = "") -> str:
    """The URL of a database of its own on the server at that socket, after the SQL of `script`."""
    name = f"t{secrets.token_hex(6)}"
    for database, statement in (("postgres", f"CREATE DATABASE {name}"), (name, script)):
        if statement:
            connection = await asyncpg.connect(host=server, user="postgres", database=database)
            await connection.execute(statement)
            await connection.close()
    return f"postgresql://postgres@/{name}?host={server}"


def _wait_until_it_serves(server: subprocess.Popen, folder: Path) -> None:
    ready = ["pg_isready", "-q", "-h", str(folder), "-t", "1"]
    while subprocess.run([_find("pg_isready") or "pg_isready", *ready[1:]], check=False).returncode != 0:
        if server.poll() is not None:
            raise RuntimeError((folder / "log").read_text())


def _find(program: str) -> str | None:
    places = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
