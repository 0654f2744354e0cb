"""Where pictures are kept: one contract for a folder and a bucket, and what is particular to each."""

import asyncio
import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.store import open_store
from gateway.store.base import ImageCorrupted, ImageExpired, InvalidStore, StoreFull, StoreUnavailable
from gateway.store.cache import CachedStore
from gateway.store.folder import FolderStore
from gateway.store.s3 import S3Store
from services.errors import NotFound

PICTURE = b"\x89PNG a red house" * 100
SHA256 = hashlib.sha256(PICTURE).hexdigest()
AN_HOUR_S = 3600


@pytest.fixture(scope="module")
def bucket_store(s3):
    """One for all tests: a client of S3 takes half a second to make."""
    s3.create_bucket(Bucket="for-all-tests")
    return S3Store("for-all-tests", "some/where")


@pytest.fixture(params=["folder", "bucket", "remembering"])
async def store(request, tmp_path):
    match request.param:
        case "folder":
            opened = FolderStore(tmp_path)
        case "remembering":
            opened = CachedStore(FolderStore(tmp_path))
        case _:
            opened = request.getfixturevalue("bucket_store")
    await opened.check()
    yield opened
    for sha256 in await kept(opened):
        await opened.delete(sha256)


async def kept(store):
    return {one.sha256 async for one in store.iterate()}


# What holds for both


async def test_what_was_put_is_there(store):
    assert await store.put(PICTURE) == SHA256
    assert await store.get(SHA256) == PICTURE


async def test_a_picture_may_be_put_twice(store):
    await store.put(PICTURE)
    assert await store.put(PICTURE) == SHA256
    assert await kept(store) == {SHA256}


async def test_the_same_picture_from_many_at_once_is_kept_once(store):
    await asyncio.gather(*(store.put(PICTURE) for _ in range(20)))
    assert await kept(store) == {SHA256}
    assert await store.get(SHA256) == PICTURE


async def test_a_picture_that_nobody_put_is_not_found(store):
    with pytest.raises(ImageExpired, match="is not kept, or not any more; make it again"):
        await store.get(SHA256)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "ab/../../x", "A" * 64, SHA256[:-1], SHA256 + "\n", "é" * 64]
)
async def test_what_is_no_sha256_is_not_found(store, name):
    with pytest.raises(NotFound):
        await store.get(name)


async def test_a_deleted_picture_is_gone(store):
    await store.put(PICTURE)
    await store.delete(SHA256)
    assert await kept(store) == set()
    with pytest.raises(NotFound):
        await store.get(SHA256)


async def test_deleting_what_is_not_there_changes_nothing(store):
    other = await store.put(b"another picture")
    await store.delete(SHA256)
    await store.delete(SHA256, put_before=time.time())
    assert await kept(store) == {other}


async def test_a_picture_that_was_put_meanwhile_is_not_deleted(store):
    await store.put(PICTURE)
    await store.delete(SHA256, put_before=time.time() - AN_HOUR_S)
    assert await store.get(SHA256) == PICTURE


async def test_a_picture_that_was_put_before_is_deleted(store):
    await store.put(PICTURE)
    await store.delete(SHA256, put_before=time.time() + AN_HOUR_S)
    assert await kept(store) == set()


async def test_all_pictures_are_listed_with_their_sizes(store):
    pictures = {await store.put(bytes([n]) * (n + 1)): n + 1 for n in range(20)}
    assert {one.sha256: one.num_bytes async for one in store.iterate()} == pictures


async def test_a_listed_picture_has_its_date(store):
    before = time.time() - 2  # S3 reports whole seconds
    await store.put(PICTURE)
    [put_at] = [one.put_at async for one in store.iterate()]
    assert before <= put_at <= time.time()


async def test_an_empty_file_is_a_file(store):
    assert await store.get(await store.put(b"")) == b""


# What a folder has


@pytest.fixture
async def folder(tmp_path):
    store = FolderStore(tmp_path / "pictures")
    yield store
    await store.close()


def path_in(tmp_path) -> Path:
    return tmp_path / "pictures" / SHA256[:2] / SHA256[2:]


def files_in(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]


async def test_a_picture_lies_below_the_first_two_digits_of_its_sha256(folder, tmp_path):
    await folder.put(PICTURE)
    assert files_in(tmp_path) == [path_in(tmp_path)]


async def test_only_its_owner_may_read_a_picture(folder, tmp_path):
    await folder.put(PICTURE)
    assert path_in(tmp_path).stat().st_mode & 0o077 == 0
    assert path_in(tmp_path).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "damage", [b"", PICTURE[:-1], PICTURE[:-1] + b"!"], ids=["empty", "short", "changed"]
)
async def test_a_damaged_picture_is_not_delivered(folder, tmp_path, damage):
    await folder.put(PICTURE)
    path_in(tmp_path).write_bytes(damage)
    with pytest.raises(ImageCorrupted, match="damaged in the store"):
        await folder.get(SHA256)


async def test_putting_a_damaged_picture_again_mends_it(folder, tmp_path):
    await folder.put(PICTURE)
    path_in(tmp_path).write_bytes(b"")
    await folder.put(PICTURE)
    assert await folder.get(SHA256) == PICTURE


async def test_putting_a_picture_again_makes_it_young(folder, tmp_path):
    await folder.put(PICTURE)
    os.utime(path_in(tmp_path), (0, 0))
    await folder.put(PICTURE)
    await folder.delete(SHA256, put_before=1.0)
    assert await folder.get(SHA256) == PICTURE


async def test_a_file_that_a_killed_process_left_is_neither_listed_nor_kept(folder, tmp_path):
    await folder.put(PICTURE)
    stray = tmp_path / "pictures" / "incoming" / "0123456789abcdef.xyz"
    stray.write_bytes(PICTURE[:10])
    os.utime(stray, (0, 0))
    assert await kept(folder) == {SHA256}
    assert files_in(tmp_path) == [path_in(tmp_path)]


async def test_a_file_that_is_being_written_is_left_alone(folder, tmp_path):
    await folder.put(PICTURE)
    (tmp_path / "pictures" / "incoming" / "0123456789abcdef.xyz").write_bytes(PICTURE[:10])
    await kept(folder)
    assert len(files_in(tmp_path)) == 2


async def test_a_foreign_file_in_the_folder_is_no_picture(folder, tmp_path):
    await folder.put(PICTURE)
    path_in(tmp_path).with_name("README").write_text("not a picture")
    assert await kept(folder) == {SHA256}


async def test_a_full_disk_is_said_and_leaves_nothing_half(folder, tmp_path):
    await folder.put(b"the first picture is small")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(PICTURE) // 2, hard))
    try:
        with pytest.raises(StoreFull, match="the store of pictures is full"):
            await folder.put(PICTURE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(files_in(tmp_path)) == 1
    assert await folder.put(PICTURE) == SHA256


async def test_a_disk_that_hangs_is_an_error_and_not_a_wait_without_end(folder, tmp_path):
    await folder.check()
    path_in(tmp_path).parent.mkdir()
    os.mkfifo(path_in(tmp_path))
    folder._threads._timeout_s = 0.2
    with pytest.raises(StoreUnavailable, match="did not answer within"):
        await folder.get(SHA256)
    path_in(tmp_path).write_bytes(b"")  # lets the thread that reads go


async def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    store = FolderStore(tmp_path / "file" / "pictures")
    with pytest.raises(InvalidStore, match="pictures cannot be kept in .*; name a folder"):
        await store.check()
    await store.close()


WRITER = """
import asyncio, pathlib, sys
from gateway.store.folder import FolderStore

async def main():
    store = FolderStore(pathlib.Path(sys.argv[1]))
    number = 0
    while True:
        number += 1
        print(await store.put(b"%d" % number * 50_000), flush=True)

asyncio.run(main())
"""


def write_until_killed(folder, num_pictures) -> set[str]:
    """What a process said that it has put, before it was killed while it wrote."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        reported = [process.stdout.readline() for _ in range(num_pictures)]
        process.kill()
        reported += process.stdout
    return {line.strip() for line in reported if line.endswith("\n")}


@pytest.mark.parametrize("num_pictures", [1, 3, 5])
async def test_what_a_killed_writer_had_put_is_there_and_whole(folder, tmp_path, num_pictures):
    reported = write_until_killed(tmp_path / "pictures", num_pictures)
    listed = await kept(folder)
    assert reported <= listed
    for sha256 in listed:
        assert len(await folder.get(sha256)) >= 50_000


# What a bucket has


async def test_an_object_lies_below_its_prefix(bucket, s3):
    store = S3Store(bucket, "some/where")
    await store.put(PICTURE)
    [found] = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert found["Key"] == f"some/where/{SHA256[:2]}/{SHA256[2:]}"
    await store.close()


async def test_objects_of_others_in_the_bucket_are_no_pictures(bucket, s3):
    store = S3Store(bucket, "some")
    s3.put_object(Bucket=bucket, Key="some/README", Body=b"")
    s3.put_object(Bucket=bucket, Key=f"some/{SHA256}", Body=b"")
    s3.put_object(Bucket=bucket, Key=f"else/{SHA256[:2]}/{SHA256[2:]}", Body=b"")
    assert await kept(store) == set()
    await store.close()


async def test_a_bucket_of_more_than_a_page_is_listed_whole(bucket, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    store = S3Store(bucket)
    pictures = {await store.put(b"%d" % number) for number in range(5)}
    assert await kept(store) == pictures
    await store.close()


async def test_a_damaged_object_is_not_delivered(bucket, s3):
    store = S3Store(bucket)
    s3.put_object(Bucket=bucket, Key=f"{SHA256[:2]}/{SHA256[2:]}", Body=PICTURE[:-1])
    with pytest.raises(ImageCorrupted, match="damaged in the store"):
        await store.get(SHA256)
    await store.close()


async def test_a_bucket_that_is_not_there_is_said_at_the_start(s3):
    store = S3Store("nobody-made-this")
    with pytest.raises(InvalidStore, match="there is no bucket 'nobody-made-this' there; make it first"):
        await store.check()
    await store.close()


async def test_a_bucket_without_credentials_is_said_at_the_start(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    store = S3Store(bucket)
    with pytest.raises(InvalidStore, match="there are no credentials for s3://.*AWS_ACCESS_KEY_ID"):
        await store.check()
    await store.close()


async def test_a_bucket_whose_server_is_gone_is_unavailable(s3, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    store = S3Store("pictures")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.get(SHA256)
    await store.close()


# How one is named


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "ftp://somewhere", "s3://bucket/a?b=c"])
def test_an_address_of_no_store_explains_what_one_is(url):
    with pytest.raises(InvalidStore, match="a store is a folder or s3://BUCKET/PREFIX"):
        open_store(url)


async def test_a_path_names_a_folder(tmp_path):
    store = open_store(str(tmp_path / "pictures"))
    await store.put(PICTURE)
    assert path_in(tmp_path).exists()
    await store.close()


async def test_an_s3_address_names_a_bucket_and_a_prefix(bucket, s3):
    store = open_store(f"s3://{bucket}/below/it/")
    await store.put(PICTURE)
    assert str(store) == f"s3://{bucket}/below/it"
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["Key"].startswith("below/it/")
    await store.close()


# The memory in front


async def test_what_was_put_last_is_read_from_memory(tmp_path):
    store = CachedStore(FolderStore(tmp_path / "pictures"))
    await store.put(PICTURE)
    path_in(tmp_path).unlink()
    assert await store.get(SHA256) == PICTURE
    await store.close()


async def test_the_memory_holds_no_more_than_it_may(tmp_path):
    store = CachedStore(FolderStore(tmp_path / "pictures"), max_bytes=len(PICTURE) + 1)
    await store.put(PICTURE)
    await store.put(b"a second picture")
    path_in(tmp_path).unlink()
    with pytest.raises(NotFound):
        await store.get(SHA256)
    await store.close()
