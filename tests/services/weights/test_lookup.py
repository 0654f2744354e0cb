"""Where a service's model comes from: the first of the places that has it, which the log names with the time it took."""

import hashlib
import json
import logging
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.upscaler.conversion.convert import convert
from services.weights.cache import open_model, push
from services.weights.model_folder import read_manifest, write_manifest
from tests.published.layouts import write
from tests.triptych.cli.command_line import command, environment

NETWORK = Path(__file__).parents[2] / "golden" / "upscaler" / "nearest3conv_x4.safetensors"


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    """A small upscaler that runs."""
    folder = tmp_path_factory.mktemp("upscaler")
    convert(NETWORK, folder / "swinir", "swinir")
    return folder


@pytest.fixture
def places(upscaler, tmp_path, bucket, monkeypatch):
    """The same model in every place, called after it; and the variables that make these the places."""
    variables = {
        "TRIPTYCH_MODELS": str(tmp_path / "own"),
        "TRIPTYCH_CACHE": str(tmp_path / "user"),
        "TRIPTYCH_MACHINE_CACHE": str(tmp_path / "machine"),
        "TRIPTYCH_S3_CACHE": f"s3://{bucket}/cache",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folders = {
        "a path": tmp_path / "path",
        "its folder": tmp_path / "own" / "upscaler" / "real-l",
        "the user's cache": tmp_path / "user" / "models" / "upscaler" / "real-l",
        "the machine's cache": tmp_path / "machine" / "triptych" / "models" / "upscaler" / "real-l",
    }
    for place, folder in folders.items():
        shutil.copytree(upscaler, folder)
        write_manifest(folder, name=f"in {place}", stage="upscaler")
    shutil.copytree(upscaler, tmp_path / "pushed")
    write_manifest(tmp_path / "pushed", name="real-l", stage="upscaler")
    push(tmp_path / "pushed", f"s3://{bucket}/cache")
    return folders | {f"s3://{bucket}/cache/upscaler/real-l": None}, variables


def line_of(log: str) -> tuple[str, str]:
    """The place that the log names, and the folder."""
    found = re.search(r"model \S+ of the \w+: from (.+) in \d+\.\d s, (\S+)", log)
    assert found, log
    return found[1], found[2]


def test_the_first_place_that_has_the_model_is_used(places, caplog):
    folders, _ = places
    used = []
    for place, folder in folders.items():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            _, manifest = open_model(str(folder) if place == "a path" else "real-l", "upscaler")
        used.append((line_of(caplog.text)[0], manifest.name))
        if folder:
            shutil.rmtree(folder)
    *here, in_s3 = folders
    assert used == [("its folder" if place == "a path" else place, f"in {place}") for place in here] + [
        (in_s3, "real-l")
    ]


# The order of the places is tested above; here each case is a process that imports PyTorch.
@pytest.mark.parametrize(
    "number",
    [*(pytest.param(number, marks=pytest.mark.matrix) for number in (0, 2, 3)), 4],
    ids=["path", "user's cache", "machine's cache", "S3"],
)
def test_a_service_starts_with_it_and_explains_which_and_how_long(places, number):
    folders, variables = places
    order = list(folders)
    for place in order[:number]:
        if place != "a path":
            shutil.rmtree(folders[place])
    place = order[number]
    model = str(folders[place]) if place == "a path" else "real-l"
    announced, log = start_and_stop("upscaler", model, variables)

    assert line_of(log)[0] == ("its folder" if place == "a path" else place)
    assert announced["model"] == ("real-l" if number == 4 else f"in {place}")


def start_and_stop(stage: str, model: str, variables: dict[str, str]) -> tuple[dict, str]:
    """The service's standard output and its log."""
    arguments = command(
        "serve", stage, "--model", model, "--port", "0", "--threads", "1", "--exit-with-parent"
    )
    process = subprocess.Popen(
        arguments,
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    # The end of its input is the end of the service.
    _, log = process.communicate(timeout=120)
    return json.loads(line or "{}"), log


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Hugging Face, with the generator `mini` in small, in both of its repositories."""
    write("mini", tmp_path / "published", small=True)
    roots = {
        "/dalle-mini/dalle-mini/": tmp_path / "published" / "dalle",
        "/dalle-mini/vqgan_imagenet_f16_16384/": tmp_path / "published" / "vqgan",
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            found = re.fullmatch(r"(/[^/]+/[^/]+/)resolve/[^/]+/(.+)", self.path)
            if found is None or not (roots[found[1]] / found[2]).is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = (roots[found[1]] / found[2]).read_bytes()
            start, stop = 0, len(data)
            if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self.send_response(206 if asked else 200)
            self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[start:stop])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_a_model_that_is_in_no_cache_comes_from_where_it_was_published(tmp_path, bucket, monkeypatch, caplog):
    monkeypatch.delenv("TRIPTYCH_MODELS", raising=False)
    monkeypatch.delenv("TRIPTYCH_MACHINE_CACHE", raising=False)
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "user"))
    monkeypatch.setenv("TRIPTYCH_S3_CACHE", f"s3://{bucket}/empty")
    with caplog.at_level(logging.INFO):
        folder, manifest = open_model("mini", "generator")
    assert line_of(caplog.text) == ("where it was published", str(folder))
    assert read_manifest(folder).licence == "Apache-2.0"
    assert manifest.origin == "hf://dalle-mini/dalle-mini, hf://dalle-mini/vqgan_imagenet_f16_16384"
