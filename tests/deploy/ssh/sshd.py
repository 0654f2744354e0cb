"""A real sshd on loopback, with keys of its own, as a machine that workers are deployed to.

The port is listened on here, and each connection is handed to an `sshd -i` of its own: any free port will do, connections
can be counted, and the machine can be taken off the network and brought back at the same address.
"""

import getpass
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.ssh.machine_list import Machine
from tests.deploy.stage_command import write_command

HOST = "127.0.0.1"
# sshd is not on everybody's PATH.
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
# Of the server, which wants to be named by its whole path, and of its clients.
MISSING = [name for name, found in (("sshd", SSHD), ("ssh", shutil.which("ssh"))) if found is None]
# Without it an sshd of root does not start.
PRIVILEGE_SEPARATION = Path("/run/sshd")

CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
# Folders of tests may be writable by others.
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""


@dataclass
class Sshd:
    """One machine. `key` opens it for `user`; `known_hosts` names its host key."""

    folder: Path
    port: int
    host: str = HOST
    user: str = field(default_factory=getpass.getuser)
    num_connections: int = 0
    # What each session is started in: `unshare` and its like, where the machine is to have something of its own.
    within: Sequence[str] = ()
    sessions: list[subprocess.Popen[bytes]] = field(default_factory=list)
    listening: socket.socket | None = None
    accepting: threading.Thread | None = None

    @property
    def key(self) -> Path:
        return self.folder / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        """What sshd has to say, for tests that fail."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def authorize(self, public_key: str) -> None:
        """Lets the owner of a further key in."""
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(public_key.strip() + "\n")

    def go_online(self) -> None:
        """Listens at its port again."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((self.host, self.port))
        listening.listen()
        self.port = listening.getsockname()[1]
        self.listening = listening
        self.accepting = threading.Thread(target=self._accept, args=(listening,), daemon=True)
        self.accepting.start()

    def go_offline(self) -> None:
        """Refuses connections and ends those that there are; what runs on the machine runs on."""
        if self.listening is not None:
            # Wakes up the thread that accepts; closing alone does not.
            with suppress(OSError):
                self.listening.shutdown(socket.SHUT_RDWR)
            self.listening.close()
            self.listening = None
        if self.accepting is not None:
            self.accepting.join()
        for session in self.sessions:
            session.kill()
            session.wait()
        self.sessions.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.num_connections += 1
            with connection, (self.folder / "sshd.log").open("ab") as log:
                command = [
                    *self.within,
                    str(SSHD),
                    "-i",
                    "-f",
                    str(self.folder / "sshd_config"),
                    "-E",
                    log.name,
                ]
                session = subprocess.Popen(command, stdin=connection, stdout=connection, stderr=log)
            # Those that have ended are reaped.
            self.sessions[:] = [one for one in [*self.sessions, session] if one.poll() is None]


@contextmanager
def running_sshd(
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    host: str = HOST,
    within: Sequence[str] = (),
) -> Iterator[Sshd]:
    """A machine, for the time of the block; sessions on it have the variables. Skips the test where there is no sshd."""
    if MISSING:
        pytest.skip(f"no {' and no '.join(MISSING)} here (apt-get install openssh-server)")
    if os.getuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(parents=True)
    for name in ("host_key", "user_key"):
        make_key(folder / name)
    config = CONFIG.format(folder=folder)
    if environment:
        # All in one line: of several, sshd heeds the first.
        config += " ".join(["SetEnv", *(f'"{name}={value}"' for name, value in environment.items())]) + "\n"
    (folder / "sshd_config").write_text(config)
    (folder / "sshd.log").touch()
    machine = Sshd(folder, 0, host, within=within)
    machine.authorize((folder / "user_key.pub").read_text())
    machine.go_online()
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    machine.known_hosts.write_text(f"[{machine.host}]:{machine.port} {host_key}\n")
    try:
        yield machine
    finally:
        machine.go_offline()


def machine_of(sshd: Sshd, **settings: Any) -> Machine:
    """It, as a list of machines has it; its stages have networks that only count."""
    return Machine(
        **{
            "address": sshd.host,
            "name": "loopback",
            "user": sshd.user,
            "port": sshd.port,
            "key": str(sshd.key),
            "ssh_options": [f"UserKnownHostsFile={sshd.known_hosts}"],
            "workers": 4,
            "triptych": str(write_command(sshd.folder / "triptych")),
            "folder": str(sshd.folder / "deployments"),
            **settings,
        }
    )


def make_key(path: Path) -> None:
    """Writes a key and, as `path.pub`, its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
