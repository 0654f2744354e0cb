"""The restore of docs/operations/storage.md with a journal in PostgreSQL and a store in S3: dump, disaster, restore."""

import asyncio
import subprocess
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from click.testing import CliRunner

from gateway.journal.command import journal as journal_command
from gateway.server import StorageLocations, open_storage
from gateway.store.base import InvalidStore
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.postgresql import new_database, postgresql_server
from tests.gateway.run_fixtures import ALL, run_finished, spec

pytestmark = [pytest.mark.faults]


@pytest.fixture(scope="module")
def server():
    with postgresql_server() as folder:
        yield folder


def run_tool(program, database, *arguments, data=None):
    """A program of PostgreSQL on a database: its output."""
    parts = urlsplit(database)
    [host] = parse_qs(parts.query)["host"]
    command = [program, "-h", host, "-U", "postgres", "-d", parts.path.strip("/"), *arguments]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def copy_prefix(s3, bucket, source, target):
    """As `aws s3 sync --delete`."""
    for one in s3.list_objects_v2(Bucket=bucket, Prefix=f"{target}/").get("Contents", ()):
        s3.delete_object(Bucket=bucket, Key=one["Key"])
    for one in s3.list_objects_v2(Bucket=bucket, Prefix=f"{source}/").get("Contents", ()):
        key = target + one["Key"].removeprefix(source)
        s3.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": one["Key"]})


@asynccontextmanager
async def gateway_at(folder, journal, store, *, adopts=False):
    """As `triptych serve gateway`: it opens the pair first, which may be refused."""
    async with open_storage(StorageLocations(journal, store, adopts_store=adopts)):
        pass
    async with (
        scripted_stages() as stages,
        gateway_over(stages, folder, journal=journal, store=store) as gateway,
    ):
        yield gateway


async def make_run(gateway, seed):
    asked = spec()
    asked.seed = seed
    return await run_finished(gateway, (await gateway.facade.create_run("", asked, ALL)).name)


async def names(gateway):
    runs, _ = await gateway.facade.list_runs(ALL, page_size=100)
    return {run.name for run in runs}


async def serves(gateway, run):
    for image in run.images:
        assert (await gateway.facade.read_image(image.name, ALL))[0].sha256 == image.sha256


async def command(*arguments):
    done = await asyncio.to_thread(CliRunner().invoke, journal_command, [str(one) for one in arguments])
    return done.exit_code, done.output + str(done.exception or "")


@pytest_asyncio.fixture
async def two_days(tmp_path, server, s3, bucket):
    """A pair after two days: its runs, the dumps of both days, and `store`; yesterday's store is at the prefix "backup"."""
    journal, store = await new_database(server), f"s3://{bucket}/pictures"
    async with gateway_at(tmp_path, journal, store) as gateway:
        old = await make_run(gateway, 7)
    yesterday = run_tool("pg_dump", journal)
    copy_prefix(s3, bucket, "pictures", "backup")
    async with gateway_at(tmp_path, journal, store) as gateway:
        new = await make_run(gateway, 7000)
    return old, new, yesterday, run_tool("pg_dump", journal), store


async def restored(server, dump):
    """A database of its own with what the dump has."""
    database = await new_database(server)
    run_tool("psql", database, "-q", "-v", "ON_ERROR_STOP=1", data=dump)
    return database


async def test_a_pair_of_one_day_is_restored_and_goes_on(tmp_path, server, s3, bucket, two_days, row):
    old, new, yesterday, _, store = two_days
    journal = await restored(server, yesterday)
    copy_prefix(s3, bucket, "backup", "pictures")
    places = "--journal", journal, "--store", store
    assert (await command("compare", *places))[0] == 0
    async with gateway_at(tmp_path, journal, store) as gateway:
        assert await names(gateway) == {old.name}
        await serves(gateway, old)
        await serves(gateway, await make_run(gateway, 8))
    row("yesterday's dump and prefix: its run is served, and a new one is made")


async def test_yesterdays_dump_with_todays_bucket(tmp_path, server, two_days, row):
    old, new, yesterday, _, store = two_days
    journal = await restored(server, yesterday)
    code, output = await command("compare", "--journal", journal, "--store", store)
    assert (code, "belong to no run" in output) == (0, True), output
    async with gateway_at(tmp_path, journal, store) as gateway:
        assert await names(gateway) == {old.name}
        await serves(gateway, old)
    row("nothing is missing; today's pictures belong to no run")


async def test_todays_dump_with_yesterdays_bucket(tmp_path, server, s3, bucket, two_days, row):
    old, new, _, today, store = two_days
    journal = await restored(server, today)
    copy_prefix(s3, bucket, "backup", "pictures")
    places = "--journal", journal, "--store", store
    code, output = await command("compare", *places)
    assert (code, f"{new.name} lacks" in output) == (1, True), output
    async with gateway_at(tmp_path, journal, store) as gateway:
        assert await names(gateway) == {old.name, new.name}
        await serves(gateway, old)
    assert f"deleted {new.name}" in (await command("prune", *places, "--yes"))[1]
    assert (await command("compare", *places))[0] == 0
    row("the run that lacks pictures is named, and prune deletes it")


async def test_a_journal_that_is_lost_for_good(tmp_path, server, s3, bucket, two_days, row):
    *_, store = two_days
    journal = await new_database(server)
    before = s3.list_objects_v2(Bucket=bucket, Prefix="pictures/")["KeyCount"]
    with pytest.raises(InvalidStore, match="--adopt-store"):
        async with gateway_at(tmp_path, journal, store):
            pytest.fail("it started")
    async with gateway_at(tmp_path, journal, store, adopts=True) as gateway:
        await serves(gateway, await make_run(gateway, 9))
    # From now on the store is its own.
    async with gateway_at(tmp_path, journal, store):
        pass
    assert s3.list_objects_v2(Bucket=bucket, Prefix="pictures/")["KeyCount"] >= before
    row("refused without --adopt-store; with it a new run is made, and no picture was deleted at once")
