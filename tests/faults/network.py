"""Network namespaces that break, where this user may make them; tests/relay.py is for everybody."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_numbers = itertools.count(os.getpid() % 200)


class Namespace:
    """A network of its own with one cable to ours. It vanishes with the process that holds it, and that with us."""

    def __init__(self, number: int) -> None:
        self._cable = f"tript{number}"
        self.host = f"198.18.{number % 256}.2"  # a range that is meant for tests of networks (RFC 2544)
        self._our_host = f"198.18.{number % 256}.1"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"made\n", "no network namespace can be made"

    @property
    def prefix(self) -> list[str]:
        """What makes a command run inside."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--"]

    def lay_cable(self) -> None:
        _run(
            "ip",
            "link",
            "add",
            self._cable,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._holder.pid),
        )
        _run("ip", "address", "add", f"{self._our_host}/30", "dev", self._cable)
        _run("ip", "link", "set", self._cable, "up")
        for command in (
            ("ip", "address", "add", f"{self.host}/30", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "link", "set", "lo", "up"),
        ):
            _run(*self.prefix, *command)

    def swallow(self) -> None:
        """Every packet is dropped, both ways."""
        for chain in ("INPUT", "OUTPUT"):
            _run(*self.prefix, "iptables", "--insert", chain, "--jump", "DROP")

    def reset(self) -> None:
        """Every packet is answered with a TCP reset."""
        _run(*self.prefix, "iptables", "--insert", "INPUT", "--protocol", "tcp", "--jump", "REJECT", "--reject-with", "tcp-reset")  # fmt: skip

    def mend(self) -> None:
        _run(*self.prefix, "iptables", "--flush")

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Raises OSError or CalledProcessError where this user or this machine cannot make one."""
    made = Namespace(next(_numbers))
    try:
        made.lay_cable()
        yield made
    finally:
        made.close()


def why_no_namespace() -> str:
    """Empty where network namespaces can be made and their packets dropped."""
    if missing := [name for name in ("unshare", "nsenter", "ip", "iptables") if not shutil.which(name)]:
        return f"there is no {missing[0]} here"
    if os.geteuid():
        return "only root may make network namespaces"
    try:
        with namespace() as tried:
            tried.swallow()
            tried.mend()
            tried.reset()
    except (OSError, AssertionError, subprocess.CalledProcessError) as error:
        return f"this machine makes no network namespaces: {error}"
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
