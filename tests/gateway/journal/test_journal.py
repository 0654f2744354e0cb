"""The journal: what it refuses to open, what happens while it cannot be written, and what it costs."""

import asyncio
import os
import resource
import sqlite3
from contextlib import contextmanager

import pytest

from gateway.journal.database import InvalidJournal, JournalUnavailable
from gateway.journal.journal import open_journal
from gateway.server import StorageLocations, open_storage
from tests.gateway.fake_stage import gateway_over, pipeline, scripted_stages
from tests.gateway.run_fixtures import ALL, finished, run_finished, spec
from triptych.errors import CallError
from triptych.v1.pipeline_pb2 import CreateRunRequest, RunState

SKETCHES = {"refine": None, "upscale": None}


async def opening(address) -> str:
    """What is said of a journal that cannot be opened."""
    with pytest.raises(InvalidJournal) as raised:
        async with open_journal(str(address), "me"):
            pass
    return str(raised.value)


@contextmanager
def full_disk(gateway):
    """The journal's files can grow no more inside the block."""
    written = gateway.runs.journal.database.url.database + "-wal"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(written).st_size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_journal_of_another_version_is_refused(tmp_path):
    async with open_journal(str(tmp_path / "journal.db"), "me"):
        pass
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("UPDATE about SET value = '99' WHERE key = 'version'")
    connection.close()
    refusal = await opening(tmp_path / "journal.db")
    assert "is of version 99, and this gateway writes version 1" in refusal
    assert "name another journal with --journal" in refusal


async def test_a_journal_that_another_gateway_uses_is_refused(tmp_path):
    async with open_journal(str(tmp_path / "journal.db"), "one"):
        assert "another gateway uses the journal" in await opening(tmp_path / "journal.db")
    async with open_journal(str(tmp_path / "journal.db"), "two") as journal:
        assert await journal.reader.list_runs(None, None, 1) == []


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "journal.db").write_text("this is a letter and no database, " * 100)
    refusal = await opening(tmp_path / "journal.db")
    assert "file is not a database; mend that, or name another one with --journal" in refusal


async def test_a_database_of_another_program_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("CREATE TABLE runs (kilometres INTEGER)")
    connection.close()
    assert "has tables of another program" in await opening(tmp_path / "journal.db")


async def test_a_journal_in_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refusal = await opening(tmp_path / "file" / "journal.db")
    assert "cannot be written" in refusal
    assert "--journal" in refusal


async def test_an_address_that_is_no_journal_is_refused_without_telling_its_password():
    refusal = await opening("mysql://me:secret@host/database")
    assert "a journal is a path or postgresql://" in refusal
    assert "secret" not in refusal


async def test_a_database_that_nobody_serves_is_refused(tmp_path):
    refusal = await opening(f"postgresql://me:secret@/database?host={tmp_path}")
    assert "the journal in the database cannot be used" in refusal
    assert "secret" not in refusal


async def test_nothing_is_left_of_a_journal_that_is_none():
    async with open_storage(StorageLocations("none")) as (journal, store):
        folder = journal.database.url.database.rpartition("/")[0]
        sha256 = await store.put(b"a picture")
        assert await store.get(sha256) == b"a picture"
    assert not os.access(folder, os.F_OK)


async def test_a_run_does_not_report_what_cannot_be_written(gateway):
    gateway.generator.close_gates(0)
    run = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": 1}), ALL)
    await gateway.generator.begun[0].wait()
    live = gateway.runs.live(run.name)
    with full_disk(gateway):
        gateway.generator.gates[0].set()
        await live.wait()
        assert live.is_finished
        assert not live.record.log.is_flushed
    events = [event async for event in gateway.facade.watch_run(run.name, ALL)]
    assert finished(events).state == RunState.RUN_STATE_SUCCEEDED
    assert [event.sequence for event in await gateway.runs.journal.reader.read_log(run.name)] == list(
        range(1, events[-1].sequence + 1)
    )


async def test_while_the_journal_is_full_no_run_is_accepted_and_the_caller_is_given_a_time_to_return(gateway):
    refused = pytest.raises(JournalUnavailable, match="the journal cannot be used: its disk does not take it")
    with full_disk(gateway), refused:
        await gateway.facade.create_run("once", spec(**SKETCHES), ALL)
    run = await gateway.facade.create_run("once", spec(**SKETCHES), ALL)
    assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_journal_that_cannot_be_written_is_an_error_with_a_reason_and_a_retry(gateway):
    with full_disk(gateway), pytest.raises(CallError) as raised:
        await gateway.client.create_run(spec(**SKETCHES))
    assert (raised.value.reason, raised.value.retry_after_s) == ("JOURNAL_FAILED", 5.0)


async def test_a_journal_that_is_locked_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.journal.database.BUSY_TIMEOUT_S", 0.05)
    async with scripted_stages() as stages, gateway_over(stages, tmp_path) as gateway:
        gateway.generator.close_gates(0)
        run = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": 1}), ALL)
        await gateway.generator.begun[0].wait()
        somebody = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
        somebody.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalUnavailable, match="another program has locked it"):
            await gateway.facade.create_run("", spec(**SKETCHES), ALL)
        gateway.generator.gates[0].set()
        somebody.execute("ROLLBACK")
        somebody.close()
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_events_that_gather_are_written_in_one_transaction(gateway):
    journal, sizes = gateway.runs.journal, []
    commit = journal._commit

    async def count(group):
        sizes.append(len(group))
        return await commit(group)

    journal._commit = count
    gateway.generator.num_previews = 20
    run = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": 16}), ALL)
    await run_finished(gateway, run.name)
    assert max(sizes) > 4
    assert sum(sizes) == (await gateway.facade.get_run(run.name, ALL)).last_sequence - 1


async def test_the_picture_of_a_preview_is_not_kept(gateway):
    gateway.generator.preview_bytes = 100_000
    run = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
    await run_finished(gateway, run.name)
    size = await gateway.runs.journal.database.read(
        lambda connection: connection.exec_driver_sql("SELECT sum(length(payload)) FROM events").scalar_one()
    )
    assert size < 10_000


async def test_a_finished_run_is_in_memory_no_more(gateway):
    run = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
    await run_finished(gateway, run.name)
    await asyncio.gather(*gateway.runs._tasks)
    assert gateway.runs.live(run.name) is None
    assert (await gateway.facade.get_run(run.name, ALL)).state == RunState.RUN_STATE_SUCCEEDED


async def test_a_failed_run_explains_why_when_it_is_in_memory_no_more(gateway):
    gateway.generator.errors = {index: KeyError("x") for index in range(2)}
    run = await gateway.facade.create_run("", spec(**SKETCHES), ALL)
    await run_finished(gateway, run.name)
    gateway.runs.failures.clear()
    assert (await gateway.facade.run_error(run.name, ALL)).reason == "INTERNAL"


async def test_the_files_of_a_deleted_run_go_unless_another_run_has_them(gateway, monkeypatch):
    monkeypatch.setattr("gateway.pipeline.STORE_TIMEOUT_S", -1.0)  # as if they had been put long ago
    names = []
    for count in (2, 1):
        run = await gateway.facade.create_run("", spec(**SKETCHES, generate={"count": count}), ALL)
        await run_finished(gateway, run.name)
        names.append(run.name)
    await gateway.facade.delete_run(names[0], ALL)
    await asyncio.gather(*gateway.facade._deleting)
    image, data = await gateway.facade.read_image(f"{names[1]}/images/generate-0", ALL)
    kept = [stored.sha256 async for stored in gateway.runs.store.iterate()]
    assert (kept, bool(data)) == ([image.sha256], True)


async def test_the_run_of_a_caller_who_went_away_while_it_was_accepted_begins():
    async with pipeline() as gateway:
        begun = asyncio.ensure_future(
            gateway.stub.CreateRun(CreateRunRequest(request_id="once", spec=spec(**SKETCHES)))
        )
        await gateway.generator.begun[0].wait()
        begun.cancel()
        run = (await gateway.facade.list_runs(ALL))[0][0]
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED
