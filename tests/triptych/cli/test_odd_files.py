"""Pipes, sockets, devices and folders in the place of a file are an error in a line, and nothing waits for them."""

import os
import shutil
import socket
from pathlib import Path

import pytest

from triptych._files import read_file

MODEL = Path(__file__).parents[3] / "services/upscaler/models/tiny"


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


KINDS = {
    "a pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
}
SERVE = ("serve", "gateway", "--port", "0", "--journal", "none")
COMMANDS = {
    "tokens": ("tokens", "list", "--tokens", "odd"),
    "new token": ("tokens", "add", "me", "--tokens", "odd"),
    "tokens of a gateway": (*SERVE, "--tokens", "odd"),
    "list of workers": (*SERVE, "--workers-file", "odd"),
    "certificate": (*SERVE, "--tls-cert", "odd", "--tls-key", "odd"),
    "authority of stages": (*SERVE, "--stage-ca", "odd"),
    "secrets of webhooks": (*SERVE, "--webhook-allow", "https://example.com", "--webhook-secret-file", "odd"),
    "journal": ("serve", "gateway", "--port", "0", "--journal", "odd", "--store", "pictures"),
    "journal to check": ("journal", "check", "odd"),
    "archive": ("journal", "import", "odd", "--journal", "journal.db", "--store", "pictures"),
    "authority of a caller": ("runs", "list", "--gateway", "127.0.0.1:1", "--ca", "odd"),
    "times": ("bench", "simulate", "--times", "odd"),
    "machines": ("deploy", "ssh", "--machines", "odd", "status"),
    "manifest": ("weights", "verify", "model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_file_is_read(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    KINDS[kind](Path("odd"))
    with pytest.raises(OSError, match=f"{kind}, and no file"):
        read_file(Path("odd"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_what_is_no_file(triptych_here, name):
    for kind, make in KINDS.items():
        shutil.rmtree("model", ignore_errors=True)
        shutil.copytree(MODEL, "model", copy_function=os.link)
        odd = Path("model/manifest.json" if name == "manifest" else "odd")
        if odd.is_dir():
            odd.rmdir()
        odd.unlink(missing_ok=True)
        if kind == "a socket" and odd.parent != Path():
            continue
        make(odd)
        done = triptych_here(*COMMANDS[name])
        assert done.returncode in (1, 2), f"{kind}: {done.stderr}"
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr
