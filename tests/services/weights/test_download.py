"""Downloads: whole and right or not there at all, whatever happens on the way."""

import hashlib
import os
import random
import subprocess
import sys
from contextlib import closing

import pytest

from services.errors import ModelError
from services.weights import download as module
from services.weights.download import download
from services.weights.remotes import HttpRemote
from tests.services.weights.web_server import serving

DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch):
    monkeypatch.setattr(module, "RANGE_BYTES", 40_000)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(module, "SPARE_BYTES", 0)


@pytest.fixture
def site():
    with serving({"weights.pt": DATA}) as site:
        yield site


@pytest.fixture
def remote(site):
    with closing(HttpRemote(f"{site.url}/weights.pt")) as remote:
        yield remote


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(remote, tmp_path):
    download(remote, tmp_path / "weights.pt", sha256=SHA256)

    assert (tmp_path / "weights.pt").read_bytes() == DATA
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == [
        "weights.pt"
    ]


def test_a_file_that_is_there_is_not_asked_for_again(site, remote, tmp_path):
    (tmp_path / "weights.pt").write_bytes(DATA)
    download(remote, tmp_path / "weights.pt")
    assert site.ranges == []


def test_connections_that_break_are_taken_up_where_they_broke(site, remote, tmp_path):
    site.num_cuts = 5
    download(remote, tmp_path / "weights.pt", sha256=SHA256)

    assert (tmp_path / "weights.pt").read_bytes() == DATA
    # Half a range arrived before each cut, and the next request began behind it.
    assert sum(start % 40_000 != 0 for start, _ in site.ranges) >= 5


def test_what_has_arrived_is_kept_for_the_next_attempt(site, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_PARALLEL", 1)
    read = remote.read

    def unplugged_after_three_ranges(start, stop):
        if start >= 120_000:
            raise module.ConnectionLost("no route to host")
        return read(start, stop)

    monkeypatch.setattr(remote, "read", unplugged_after_three_ranges)
    with pytest.raises(ModelError, match="no route to host; what has arrived is kept"):
        download(remote, tmp_path / "weights.pt")
    site.ranges.clear()
    monkeypatch.setattr(remote, "read", read)
    download(remote, tmp_path / "weights.pt", sha256=SHA256)

    assert min(start for start, _ in site.ranges) == 120_000


def test_a_file_that_changed_between_two_attempts_starts_anew(site, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(
        remote, "read", lambda start, stop: iter([DATA[start:stop]] if start < 40_000 else [b""])
    )
    with pytest.raises(ModelError, match="ends at byte"):
        download(remote, tmp_path / "weights.pt")
    site.files["weights.pt"] = new = random.Random(2).randbytes(300_000)

    with closing(HttpRemote(f"{site.url}/weights.pt")) as changed:
        download(changed, tmp_path / "weights.pt")

    assert (tmp_path / "weights.pt").read_bytes() == new


def test_bytes_that_are_not_the_right_ones_are_named_and_thrown_away(site, remote, tmp_path):
    with pytest.raises(
        ModelError, match=rf"weights\.pt is damaged: expected sha256 {'0' * 64}, got {SHA256}"
    ):
        download(remote, tmp_path / "weights.pt", sha256="0" * 64)
    assert not list(tmp_path.glob("weights*"))


def test_a_disk_without_room_is_an_error_before_anything_is_asked_for(site, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SPARE_BYTES", 2**60)
    with pytest.raises(ModelError, match="GiB free and 0.0 GiB are to come: make room"):
        download(remote, tmp_path / "weights.pt")
    assert site.ranges == []


def test_two_processes_that_want_a_file_download_it_once(site, tmp_path):
    program = (
        "import sys; from pathlib import Path; from services.weights.download import download; "
        "from services.weights.remotes import HttpRemote; download(HttpRemote(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", program, f"{site.url}/weights.pt", str(tmp_path / "weights.pt")]
    both = [subprocess.Popen(arguments, cwd=os.getcwd()) for _ in range(2)]

    assert [process.wait(120) for process in both] == [0, 0]
    assert (tmp_path / "weights.pt").read_bytes() == DATA
    assert sum(stop - start for start, stop in site.ranges) == len(DATA)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "does not exist"),
        (403, "accept its licence or set a token"),
        (410, "give another place"),
        (503, "check the network"),
    ],
)
def test_an_address_that_cannot_be_read_explains_what_to_do(site, status, message):
    site.status = status
    with pytest.raises(ModelError, match=message):
        HttpRemote(f"{site.url}/weights.pt")


def test_a_server_without_ranges_is_refused(site):
    site.sends_ranges = False
    with pytest.raises(ModelError, match="sends no ranges"):
        HttpRemote(f"{site.url}/weights.pt")


def test_a_secret_in_an_address_is_in_no_message(site):
    with pytest.raises(ModelError) as caught:
        HttpRemote(f"{site.url}/gone.pt?signature=s3cret")
    assert "s3cret" not in str(caught.value)
