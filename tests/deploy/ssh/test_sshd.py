"""The machine that tests deploy to is one: it is entered by key, and can be taken off the network."""

import subprocess
from pathlib import Path

from tests.deploy.ssh.sshd import Sshd, make_key


def ssh(machine: Sshd, *command: str, key: Path | None = None) -> subprocess.CompletedProcess[str]:
    options = ["BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={machine.known_hosts}"]
    return subprocess.run(
        [
            *("ssh", "-F", "none", "-p", str(machine.port), "-i", str(key or machine.key)),
            *(part for option in options for part in ("-o", option)),
            *(f"{machine.user}@{machine.host}", *command),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_runs_there_with_the_machines_variables(sshd: Sshd):
    assert ssh(sshd, "echo $OMP_NUM_THREADS $LANG").stdout == "1 C.UTF-8\n", sshd.log
    assert sshd.num_connections == 1


def test_a_stranger_is_refused_until_the_key_is_authorized(sshd: Sshd, tmp_path: Path):
    key = tmp_path / "strangers"
    make_key(key)
    assert "Permission denied" in ssh(sshd, "true", key=key).stderr
    sshd.authorize(key.with_suffix(".pub").read_text())
    assert ssh(sshd, "true", key=key).returncode == 0, sshd.log


def test_a_machine_that_is_off_the_network_comes_back_at_its_address(sshd: Sshd):
    sshd.go_offline()
    assert "Connection refused" in ssh(sshd, "true").stderr
    sshd.go_online()
    assert ssh(sshd, "true").returncode == 0, sshd.log
