"""Spot notices, from a metadata service that speaks as EC2's does."""

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.serving import spot_notices
from services.serving.spot_notices import Notice, SpotNotices

NOTICE = {"action": "terminate", "time": "2031-05-04T12:00:00Z"}


class Metadata:
    """The part of a metadata service that is about spot machines; `valid` is the token that it takes."""

    def __init__(self):
        self.body: bytes | None = None
        self.valid = "first"
        self.address = ""
        # So many questions are answered with an error first.
        self.num_failures = 0

    @contextmanager
    def serving(self):
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, status, body=b""):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self):
                asks_rightly = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
                self.answer(200 if asks_rightly else 400, metadata.valid.encode())

            def do_GET(self):
                if metadata.num_failures:
                    metadata.num_failures -= 1
                    self.answer(500)
                elif self.headers.get("X-aws-ec2-metadata-token") != metadata.valid:
                    self.answer(401)
                elif self.path != "/latest/meta-data/spot/instance-action" or metadata.body is None:
                    self.answer(404)
                else:
                    self.answer(200, metadata.body)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def metadata():
    with Metadata().serving() as metadata:
        yield metadata


def test_a_machine_that_stays_has_no_notice(metadata):
    assert SpotNotices(metadata.address).ask() is None


def test_a_notice_explains_what_happens_and_when(metadata):
    metadata.body = json.dumps(NOTICE).encode()
    assert SpotNotices(metadata.address).ask() == Notice("terminate", "2031-05-04T12:00:00Z")


def test_a_token_that_has_run_out_is_renewed(metadata):
    notices = SpotNotices(metadata.address)
    notices.ask()
    metadata.valid = "second"
    metadata.body = json.dumps(NOTICE).encode()
    assert notices.ask() is None
    assert notices.ask() == Notice("terminate", "2031-05-04T12:00:00Z")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"not json"])
def test_a_notice_that_cannot_be_read_is_one_all_the_same(metadata, body):
    metadata.body = body
    assert SpotNotices(metadata.address).ask() == Notice("terminate", "soon")


async def test_waiting_ends_with_the_notice(metadata, monkeypatch):
    monkeypatch.setattr(spot_notices, "ASK_EVERY_S", 0.01)
    notices, asked = SpotNotices(metadata.address), []
    ask = notices.ask

    def ask_and_then_be_told():
        asked.append(None)
        if len(asked) == 3:
            metadata.body = json.dumps(NOTICE).encode()
        return ask()

    monkeypatch.setattr(notices, "ask", ask_and_then_be_told)
    assert (await notices.wait()).action == "terminate"
    assert len(asked) == 3


async def test_a_service_that_fails_is_asked_again(metadata, monkeypatch):
    monkeypatch.setattr(spot_notices, "ASK_EVERY_S", 0.01)
    metadata.body = json.dumps(NOTICE).encode()
    metadata.num_failures = 2
    assert (await SpotNotices(metadata.address).wait()).action == "terminate"
    assert metadata.num_failures == 0


def test_a_worker_that_hears_a_notice_stops_well(metadata):
    command = [
        sys.executable,
        "-m",
        "triptych",
        "serve",
        "upscaler",
        "--port",
        "0",
        "--spot-notices",
        metadata.address,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["service"] == "upscaler"
        metadata.body = json.dumps(NOTICE).encode()
        _, log = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "this machine is to terminate at 2031-05-04T12:00:00Z: nothing new is taken here" in log
