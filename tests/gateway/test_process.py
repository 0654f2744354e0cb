"""The gateway as a process: how it begins, what it says, how it ends."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

COMMAND = [sys.executable, "-m", "triptych", "serve", "gateway"]
NOBODY = [
    argument for stage in ("generator", "refiner", "upscaler") for argument in (f"--{stage}", "127.0.0.1:1")
]


@contextmanager
def gateway_process(*arguments):
    """A gateway on a free port, and the line that it began with."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *NOBODY, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def refused(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *NOBODY, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    with gateway_process() as (process, said):
        assert said["service"] == "gateway"
        host, _, port = said["address"].rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_it_ends_with_its_parent_where_that_is_asked_for():
    with gateway_process("--exit-with-parent") as (process, _):
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def test_a_port_in_use_is_an_error_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = refused("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "the port is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_is_no_address_is_wrong_usage():
    done = refused("--generator", "somewhere")
    assert done.returncode == 2
    assert "expected HOST:PORT or dns:NAME:PORT, got 'somewhere'" in done.stderr
