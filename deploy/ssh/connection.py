"""Commands on one machine through the system's ssh.

What is run there is a script of ours with quoted arguments, never a text that a machine has sent. Connections are shared
(ControlMaster) and end with the object. Every error has what to do about it.
"""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.deployer import DeployError
from deploy.log_lines import follow_lines, printable
from deploy.ssh.machine_list import Machine

CONNECT_TIMEOUT_S = 10
# Of a whole command; the longest waits for workers that end.
COMMAND_TIMEOUT_S = 120.0
# ssh's own exit code; a script there has others.
FAILED = 255
# Of our scripts: the command is not there.
NO_TRIPTYCH = 90
# Of our scripts: another user created the deployment, whose name they print.
NOT_OWNER = 91

OPTIONS = {
    # Nobody is there to be asked.
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_TIMEOUT_S),
    # A machine that goes away meanwhile is noticed.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "auto",
    # Should nobody close it.
    "ControlPersist": "60",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}


class Unreachable(DeployError):
    """A machine that ssh does not come to."""

    reason = "MACHINE_UNREACHABLE"


class NotOwner(DeployError):
    """Another user created the deployment; `owner` is who."""

    reason = "NOT_OWNER"

    def __init__(self, owner: str) -> None:
        super().__init__(f"it belongs to {owner}")
        self.owner = owner


class Connection:
    """To one machine; opened with the first command. Threads may share it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        # Short, and for its owner alone: a socket's path may have 100 letters.
        self._sockets = Path(tempfile.mkdtemp(prefix="triptych-ssh-"))
        self._closing = weakref.finalize(self, _close, self._sockets)

    def run(self, script: str, arguments: Sequence[str] = (), data: bytes = b"") -> str:
        """Runs a shell script there with arguments, and `data` as what it reads; returns what it prints.

        Raises Unreachable, or DeployError where the script fails.
        """
        command = self._command_for(script, arguments)
        # To a file: a connection that stays open would keep a pipe open, too.
        with tempfile.TemporaryFile() as errors:
            try:
                done = subprocess.run(  # noqa: S603 - ssh, for a machine that the user has listed
                    command,
                    input=data,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    timeout=COMMAND_TIMEOUT_S,
                    check=False,
                )
            except FileNotFoundError:
                raise DeployError("there is no `ssh` here: install OpenSSH's client") from None
            except subprocess.TimeoutExpired:
                raise Unreachable(
                    f"{self._machine.name} did not answer for {COMMAND_TIMEOUT_S:.0f} s; is it overloaded?"
                ) from None
            errors.seek(0)
            said = printable(errors.read().decode("utf-8", "replace"))
        if done.returncode == FAILED:
            raise Unreachable(explain(self._machine, said))
        if done.returncode == NO_TRIPTYCH:
            raise DeployError(
                f"{self._machine.name} has no command '{self._machine.triptych}': install it there (in a copy of the "
                f"source: python3 -m venv .venv && .venv/bin/pip install . './packages/server[{','.join(self._machine.stages)}]'), "
                "and "
                'name it in the list of machines: triptych = "/home/.../.venv/bin/triptych"'
            )
        if done.returncode == NOT_OWNER:
            raise NotOwner(said.strip())
        if done.returncode != 0:
            last = said.strip().splitlines()[-1:] or ["it said nothing"]
            raise DeployError(f"{self._machine.name}: a command failed ({done.returncode}): {last[0]}")
        return printable(done.stdout.decode("utf-8", "replace"))

    def follow(self, script: str, arguments: Sequence[str] = ()) -> Iterator[str]:
        """Runs a script there and yields each line that it prints, until it ends or the iterator is closed."""
        return follow_lines(self._command_for(script, arguments), stderr=subprocess.DEVNULL)

    def close(self) -> None:
        """Ends the connection, for good."""
        self._closing()

    def _command_for(self, script: str, arguments: Sequence[str]) -> list[str]:
        # ssh sends one text, which the user's shell there takes apart again.
        there = shlex.join(["exec", "sh", "-c", script, "triptych", *arguments])
        return [*self._command(), "--", self._machine.destination, there]

    def _command(self) -> list[str]:
        options = OPTIONS | {"ControlPath": f"{self._sockets}/%C"}
        machine = self._machine
        return [
            *("ssh", "-T"),
            # ssh takes the first of several, so the user's own go first.
            *(part for option in machine.ssh_options for part in ("-o", option)),
            *(part for name, value in options.items() for part in ("-o", f"{name}={value}")),
            *(("-p", str(machine.port)) if machine.port else ()),
            *(("-i", os.path.expanduser(machine.key), "-o", "IdentitiesOnly=yes") if machine.key else ()),
        ]


def explain(machine: Machine, said: str) -> str:
    """Why ssh did not come to a machine, and what to do."""
    where = machine.destination + (f" (port {machine.port})" if machine.port else "")
    lines = [line for line in said.strip().splitlines() if line.strip(" @")]
    last = lines[-1] if lines else "ssh said nothing"
    if "IDENTIFICATION HAS CHANGED" in said:
        what = (
            f"its host key is not the one that is known here: it was set up anew, or something else answers in its place; "
            f"if you know which, forget the old key (ssh-keygen -R) and connect to it once by hand: ssh {where}"
        )
    elif "Host key verification failed" in said or "host key is known" in said:
        what = f"its host key is not known here: connect to it once by hand, and compare the fingerprint: ssh {where}"
    elif "Permission denied" in said:
        what = (
            f"it lets nobody in with {machine.key or 'the keys that ssh finds'} as {machine.user or 'the user of that name'}: "
            f"ssh-copy-id puts a key there, ssh-add unlocks one that has a passphrase ({last})"
        )
    elif "Could not resolve hostname" in said:
        what = f"there is no host of that name ({last}); is the address right?"
    elif re.search(r"timed out|No route to host|Network is unreachable", said):
        what = f"no way leads to it ({last}): is it running, and is a firewall between?"
    elif "Connection refused" in said:
        what = f"nobody listens for ssh there ({last}): is it running, and the port right?"
    else:
        what = last
    return f"cannot reach {machine.name} as {where}: {what}"


def _close(sockets: Path) -> None:
    for socket in sockets.iterdir():
        # The socket identifies the connection, whatever the host.
        command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - our own
    shutil.rmtree(sockets, ignore_errors=True)
