"""The S3 cache over connections that break, between processes, and on disks that are full."""

import logging
import os
import random
import subprocess
import sys

import pytest
from boto3.exceptions import S3UploadFailedError

from services.errors import ModelError
from services.weights import cache, download as download_module
from services.weights.cache import fetch, find_cached, push
from services.weights.model_folder import check_files, read_manifest, write_manifest
from services.weights.remotes import S3Remote
from tests.faults.disks import small_disk, why_no_small_disk
from tests.services.weights.cutting_proxy import cutting_proxy
from tests.triptych.cli.command_line import command, environment

# More than boto3 sends in one piece, so that a push has several.
NUM_BYTES = 12 * 2**20
KEY = "cache/upscaler/real-l/swinir/model.safetensors"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def num_bytes():
    return NUM_BYTES


@pytest.fixture(autouse=True)
def short_ranges_and_pauses(monkeypatch):
    monkeypatch.setattr(download_module, "RANGE_BYTES", 2**20)
    monkeypatch.setattr(download_module, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def through(monkeypatch):
    """Sends everything that is asked of S3 through a proxy."""

    def use(proxy):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

    return use


@pytest.mark.parametrize("seed", [1, 2])
def test_a_push_and_a_pull_through_three_cuts_each_give_the_same_bytes(
    bucket, model, through, monkeypatch, seed
):
    target = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("TRIPTYCH_S3_CACHE", f"s3://{bucket}/cache")
    for action in (lambda: push(model, f"s3://{bucket}/cache"), lambda: fetch("real-l", "upscaler")):
        with cutting_proxy(target, seed=seed, num_cuts=3, num_bytes=NUM_BYTES) as proxy:
            through(proxy)
            action()
        assert proxy.num_cut == 3
    found = find_cached("real-l", "upscaler")
    assert (found.folder / "swinir" / "model.safetensors").read_bytes() == (
        model / "swinir" / "model.safetensors"
    ).read_bytes()


def test_what_arrived_before_a_cut_is_not_asked_for_again(in_s3, through):
    with cutting_proxy(os.environ["AWS_ENDPOINT_URL"], seed=3, num_cuts=3, num_bytes=NUM_BYTES) as proxy:
        through(proxy)
        fetch("real-l", "upscaler")
    # What was on its way in each of the cut connections, at most a range, comes twice.
    assert proxy.num_bytes_down < NUM_BYTES + 3 * (2**20 + 2**18)


def test_two_processes_that_pull_a_model_at_once_download_it_once(in_s3, model, cache):
    with cutting_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        variables = environment(
            TRIPTYCH_CACHE=str(cache), TRIPTYCH_S3_CACHE=f"s3://{in_s3}/cache", AWS_ENDPOINT_URL=proxy.url
        )
        both = [
            subprocess.Popen(
                command("weights", "pull", "real-l"), env=variables, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        output = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert NUM_BYTES < proxy.num_bytes_down < 1.1 * NUM_BYTES
    assert sum(f"from s3://{in_s3}/cache" in line for line in output) == 1
    check_files(find_cached("real-l", "upscaler").folder, read_manifest(model))


def test_an_object_that_was_replaced_by_another_model_s_is_noticed(in_s3, s3):
    s3.put_object(Bucket=in_s3, Key=KEY, Body=bytes(NUM_BYTES), Metadata={"sha256": "0" * 64})
    with pytest.raises(ModelError, match=rf"s3://{in_s3}/{KEY} is damaged: expected sha256 .* got"):
        fetch("real-l", "upscaler")


def test_a_damaged_object_that_claims_to_be_whole_is_replaced_with_force(in_s3, s3, model):
    output = s3.head_object(Bucket=in_s3, Key=KEY)["Metadata"]
    s3.put_object(Bucket=in_s3, Key=KEY, Body=bytes(NUM_BYTES), Metadata=output)
    push(model, f"s3://{in_s3}/cache")
    with pytest.raises(ModelError, match=r"is damaged: .* with `triptych weights push --force`"):
        fetch("real-l", "upscaler")
    push(model, f"s3://{in_s3}/cache", force=True)
    check_files(fetch("real-l", "upscaler").folder, read_manifest(model))


def test_an_object_that_changes_during_the_download_is_noticed(in_s3, s3, monkeypatch):
    from services.weights.remotes import S3Remote

    read, replaced = S3Remote.read, []

    def replace_it_first(self, start, stop):
        if self.name.endswith("model.safetensors") and not replaced:
            replaced.append(start)
            s3.put_object(Bucket=in_s3, Key=KEY, Body=bytes(NUM_BYTES))
        return read(self, start, stop)

    monkeypatch.setattr(S3Remote, "read", replace_it_first)
    with pytest.raises(
        ModelError, match=rf"{KEY} has changed while it was downloaded; run the command again"
    ):
        fetch("real-l", "upscaler")


def test_a_model_that_was_pushed_anew_between_two_attempts_comes_whole(in_s3, s3, model, cache, monkeypatch):
    read = S3Remote.read

    def unplugged(remote, *arguments):
        if not remote.name.endswith("manifest.json"):
            raise download_module.ConnectionLost("unplugged")
        yield from read(remote, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(S3Remote, "read", unplugged)
        with pytest.raises(ModelError, match="unplugged; what has arrived is kept"):
            fetch("real-l", "upscaler")
    (model / "swinir" / "model.safetensors").write_bytes(random.Random(2).randbytes(NUM_BYTES))
    write_manifest(model, name="real-l", stage="upscaler")
    push(model, f"s3://{in_s3}/cache")

    check_files(fetch("real-l", "upscaler").folder, read_manifest(model))


def test_without_credentials_a_push_explains_which_to_set(bucket, model, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(ModelError, match="no AWS credentials; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        push(model, f"s3://{bucket}/cache")


@pytest.mark.parametrize("action", ["push", "fetch"])
def test_a_bucket_that_is_not_there_is_named(s3, model, monkeypatch, action):
    monkeypatch.setenv("TRIPTYCH_S3_CACHE", "s3://misspelt/cache")
    with pytest.raises(
        ModelError, match="there is no S3 bucket 'misspelt'.*: create it, or name another one"
    ):
        push(model, "s3://misspelt/cache") if action == "push" else fetch("real-l", "upscaler")


@pytest.mark.parametrize("is_whole", [True, False])
def test_an_upload_whose_last_answer_was_lost_counts_if_the_object_is_there(
    bucket, model, monkeypatch, is_whole
):
    client = cache.s3_client()
    upload = client.upload_file

    def lose_the_answer(*arguments, **settings):
        if is_whole:
            upload(*arguments, **settings)
        raise S3UploadFailedError("NoSuchUpload")

    monkeypatch.setattr(client, "upload_file", lose_the_answer)
    monkeypatch.setattr(cache, "s3_client", lambda: client)
    if is_whole:
        assert push(model, f"s3://{bucket}/cache") == f"s3://{bucket}/cache/upscaler/real-l"
    else:
        with pytest.raises(ModelError, match="NoSuchUpload; run the command again"):
            push(model, f"s3://{bucket}/cache")


def test_an_s3_that_is_not_there_is_an_error_that_explains_it(bucket, model, monkeypatch):
    with cutting_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        gone = proxy.url
    monkeypatch.setenv("AWS_ENDPOINT_URL", gone)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(ModelError, match="cannot be reached"):
        push(model, f"s3://{bucket}/cache")


PULL = (
    "import sys; from services.weights import cache, download; from services.errors import ModelError\n"
    "download.RANGE_BYTES, download.SPARE_BYTES = 2**20, int(sys.argv[1])\n"
    "try: cache.fetch('real-l', 'upscaler')\n"
    "except ModelError as error: print(error)\n"
)


def pull_onto(disk, bucket, *, spare_bytes):
    """What a pull to that disk ends with, in words."""
    done = subprocess.run(
        [*disk.prefix, sys.executable, "-c", PULL, str(spare_bytes)],
        env=environment(TRIPTYCH_CACHE=str(disk.path), TRIPTYCH_S3_CACHE=f"s3://{bucket}/cache"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


@pytest.fixture
def disk(tmp_path):
    """A file system with room for the model and a half."""
    if reason := why_no_small_disk(tmp_path):
        pytest.skip(reason)
    with small_disk(tmp_path / "disk", NUM_BYTES * 3 // 2) as disk:
        yield disk


def test_a_disk_that_is_too_small_is_noticed_before_the_download(in_s3, disk):
    (disk.from_here / "filler").write_bytes(bytes(NUM_BYTES))
    assert "GiB are to come: make room there, or name another place with TRIPTYCH_CACHE" in pull_onto(
        disk, in_s3, spare_bytes=0
    )


def test_a_disk_that_fills_up_keeps_what_has_arrived_and_goes_on_with_room(in_s3, disk, model):
    (disk.from_here / "filler").write_bytes(bytes(NUM_BYTES))
    # Room is counted on that somebody else takes meanwhile.
    output = pull_onto(disk, in_s3, spare_bytes=-NUM_BYTES)
    assert f"the disk of {disk.path}" in output
    assert "is full: s3://" in output
    assert "what has arrived is kept, make room and run the command again" in output
    part = next(disk.from_here.rglob("model.safetensors.part"))
    before = part.stat().st_blocks

    disk.free()
    assert pull_onto(disk, in_s3, spare_bytes=0) == ""

    folder = disk.from_here / "models" / "upscaler" / "real-l"
    check_files(folder, read_manifest(model))
    assert before > 0


def test_a_fetch_explains_where_it_came_from_and_how_long_it_took(in_s3, caplog):
    with caplog.at_level(logging.INFO):
        cache.open_model("real-l", "upscaler")
    assert f"upscaler real-l: from s3://{in_s3}/cache/upscaler/real-l in " in caplog.text
