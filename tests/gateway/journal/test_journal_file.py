"""The file of a journal: one process holds it by whatever name, it is its owner's alone, and its loss is noticed."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.journal.command import copy_readable, journal
from gateway.journal.database import JournalUnavailable
from gateway.journal.journal import open_journal
from gateway.journal.journal_file import InvalidJournal, JournalFile
from gateway.store.base import StoreUnavailable
from gateway.store.folder import FolderStore
from tests.gateway.fake_stage import pipeline
from tests.gateway.run_fixtures import ALL, collect, spec
from triptych._redaction import without_passwords

SKETCHES = {"generate": {"count": 2}, "refine": None, "upscale": None}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_name_of_the_same_file_is_refused(tmp_path, link):
    held = JournalFile(tmp_path / "journal.db")
    link(tmp_path / "journal.db", tmp_path / "other.db")
    with pytest.raises(InvalidJournal, match="another name of the same file"):
        JournalFile(tmp_path / "other.db")
    held.close()
    JournalFile(tmp_path / "other.db").close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "journal.db")
    with pytest.raises(InvalidJournal):
        JournalFile(tmp_path / "journal.db")


def test_it_and_its_folder_are_the_owners_alone(tmp_path):
    JournalFile(tmp_path / "new" / "journal.db").close()
    (tmp_path / "old.db").touch(0o644)
    (tmp_path / "old.db-wal").touch(0o644)
    JournalFile(tmp_path / "old.db").close()
    paths = [tmp_path / "new", tmp_path / "new" / "journal.db", tmp_path / "old.db", tmp_path / "old.db-wal"]
    assert [path.stat().st_mode & 0o077 for path in paths] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "lose", [lambda path: path.unlink(), lambda path: path.replace(path.with_suffix(".old"))]
)
async def test_nothing_is_accepted_for_a_journal_that_is_gone(lose):
    async with pipeline() as gateway:
        await collect(gateway, spec(**SKETCHES))
        lose(Path(gateway.runs.journal.database.url.database))
        with pytest.raises(JournalUnavailable, match="is gone"):
            await gateway.facade.create_run("", spec(**SKETCHES), ALL)


async def test_nothing_is_accepted_for_a_journal_that_was_replaced(tmp_path):
    async with pipeline() as gateway:
        path = Path(gateway.runs.journal.database.url.database)
        shutil.copy(path, tmp_path / "other.db")
        os.replace(tmp_path / "other.db", path)
        with pytest.raises(JournalUnavailable, match="was replaced"):
            await gateway.facade.create_run("", spec(**SKETCHES), ALL)


async def test_a_store_that_is_gone_or_replaced_keeps_and_gives_nothing(tmp_path):
    store = FolderStore(tmp_path / "pictures")
    await store.check()
    kept = await store.put(b"a picture")
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.put(b"another picture")
        with pytest.raises(StoreUnavailable):
            await store.get(kept)
        (tmp_path / "pictures").mkdir(exist_ok=True)
    (tmp_path / "pictures").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "pictures")
    assert await store.get(kept) == b"a picture"
    await store.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@db.example/runs", "postgresql://...@db.example/runs"),
        (
            "cannot reach 's3://KEY:SECRET@bucket/x' and https://a:b@c",
            "cannot reach 's3://...@bucket/x' and https://...@c",
        ),
        ("postgresql://db.example/runs", "postgresql://db.example/runs"),
    ],
)
def test_passwords_in_urls_are_not_shown(text, shown):
    assert without_passwords(text) == shown


@pytest.fixture
async def kept(tmp_path):
    """A journal with runs, as a gateway that has stopped leaves it."""
    async with pipeline() as gateway:
        for _ in range(5):
            await collect(gateway, spec(**SKETCHES))
        source = sqlite3.connect(gateway.runs.journal.database.url.database)
        with sqlite3.connect(tmp_path / "journal.db") as target:
            source.backup(target)
        target.close()
        source.close()
    return tmp_path / "journal.db"


async def test_check_reports_what_a_journal_holds(kept):
    done = CliRunner().invoke(journal, ["check", str(kept)])
    assert done.exit_code == 0, done.output
    assert "version 1" in done.output
    assert "5 runs" in done.output


async def test_repair_saves_what_can_be_read_and_keeps_the_damaged_file(kept):
    data = bytearray(kept.read_bytes())
    page = 4096
    # An index's root page, which no row is lost with.
    with sqlite3.connect(kept) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'runs_by_time'"
        ).fetchone()
    connection.close()
    data[(root - 1) * page : (root - 1) * page + 100] = b"\xff" * 100
    kept.write_bytes(data)
    assert CliRunner().invoke(journal, ["check", str(kept)]).exit_code == 1
    done = CliRunner().invoke(journal, ["repair", str(kept)])
    assert done.exit_code == 0, done.output
    assert CliRunner().invoke(journal, ["check", str(kept)]).exit_code == 0
    with sqlite3.connect(kept) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (5,)
    connection.close()
    damaged = [path for path in kept.parent.glob("journal.db.damaged-*") if path.name.endswith("Z")]
    assert [path.read_bytes()[page:] for path in damaged] == [bytes(data)[page:]]


async def test_repair_of_an_older_journal_gives_one_of_the_last_revision(tmp_path):
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "journals" / "0001" / "sqlite.sql").read_text())
    saved = copy_readable(path, tmp_path / "repaired.db")
    assert saved["runs"] == 9
    async with open_journal(str(tmp_path / "repaired.db"), "me") as journal:
        assert len(await journal.reader.list_runs(None, None, 100)) == 9


async def test_what_cannot_be_read_at_all_is_left_as_it_is(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database" * 1000)
    assert CliRunner().invoke(journal, ["check", str(path)]).exit_code == 1
    assert CliRunner().invoke(journal, ["repair", str(path)]).exit_code == 1
    assert path.read_bytes() == b"no database" * 1000
