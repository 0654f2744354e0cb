"""A journal or a store that is lost, replaced or damaged, before the start and while running: reported, and nothing accepted."""

import shutil
import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from gateway.journal.database import JournalUnavailable
from gateway.journal.journal import open_journal
from gateway.journal.schema import metadata
from gateway.runs.manager import StorageFailed
from gateway.server import StorageLocations, open_storage
from gateway.storage_health import StorageHealth, check_pair
from gateway.store import open_store
from gateway.store.base import InvalidStore
from tests.gateway.http.conftest import web_gateway
from tests.gateway.postgresql import new_database
from tests.gateway.run_fixtures import ALL, spec
from triptych.v1.pipeline_pb2 import CreateRunRequest


class Opened:
    """Journal and store with their health."""

    def __init__(self, folder, journal, store):
        self.folder, self.journal, self.store = folder, journal, store
        self.reported: list[str] = []
        self.health = StorageHealth(journal, store, self._report)

    async def _report(self, problem):
        self.reported.append(problem)

    async def look(self) -> str:
        await self.health.look()
        return self.health.problem


@asynccontextmanager
async def opened(folder: Path, address: str = ""):
    store = open_store(str(folder / "pictures"))
    await store.check()
    async with open_journal(address or str(folder / "journal.db"), "here") as journal:
        await check_pair(journal, store, adopts=False, is_lasting=True)
        yield Opened(folder, journal, store)
    await store.close()


@pytest.fixture
async def storage(tmp_path):
    async with opened(tmp_path) as made:
        yield made


async def test_nothing_is_reported_of_what_is_well(storage):
    assert await storage.look() == ""
    assert storage.reported == []


async def test_a_journal_that_is_gone_is_reported_until_it_is_back(storage):
    path = storage.folder / "journal.db"
    path.rename(storage.folder / "aside.db")
    assert "journal.db is gone" in await storage.look()
    (storage.folder / "aside.db").rename(path)
    assert await storage.look() == ""
    assert len(storage.reported) == 2


async def test_a_journal_that_was_replaced_is_reported(storage):
    path = storage.folder / "journal.db"
    shutil.copy(path, storage.folder / "copy.db")
    (storage.folder / "copy.db").replace(path)
    assert "was replaced by another file" in await storage.look()


@pytest.mark.parametrize("place", ["head", "middle", "end", "all"])
async def test_a_damaged_journal_is_reported_and_not_written(storage, place):
    path = storage.folder / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        if place in ("end", "all"):
            file.truncate(0 if place == "all" else size // 2)
        else:
            file.seek(0 if place == "head" else 4096)
            file.write(b"\xa5" * (100 if place == "head" else 16_384))
    assert "the journal is damaged" in await storage.look()
    with pytest.raises(JournalUnavailable, match="its file is damaged"):
        await storage.journal.detach("runs/any")


async def test_a_store_that_is_gone_is_reported_and_not_made_anew(storage):
    pictures = storage.folder / "pictures"
    pictures.rename(storage.folder / "aside")
    assert "pictures cannot be kept" in await storage.look()
    assert not pictures.exists()
    (storage.folder / "aside").rename(pictures)
    assert await storage.look() == ""


async def test_a_store_that_was_replaced_is_reported(storage):
    shutil.rmtree(storage.folder / "pictures")
    (storage.folder / "pictures").mkdir()
    assert "pictures cannot be kept" in await storage.look()


async def test_a_store_that_lost_all_its_files_is_reported(storage):
    """As if another folder had got the inode of the one that was removed."""
    for path in (storage.folder / "pictures").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "was replaced by another one" in await storage.look()


async def test_a_database_whose_tables_are_gone_or_others_is_reported(server, tmp_path):
    async with opened(tmp_path, await new_database(server)) as storage:
        assert await storage.look() == ""
        change = sa.text("UPDATE about SET value = 'another' WHERE key = 'id'")
        await storage.journal.database.write(lambda connection: connection.execute(change))
        assert "replaced by another" in await storage.look()
        await storage.journal.database.write(metadata.drop_all)
        assert "tables are gone" in await storage.look()


async def add_picture(folder: Path) -> Path:
    store = open_store(str(folder / "pictures"))
    await store.check()
    sha256 = await store.put(b"a picture")
    await store.close()
    return folder / "pictures" / sha256[:2] / sha256[2:]


def locations(folder: Path, journal: str = "journal.db", **more) -> StorageLocations:
    named = journal if journal == "none" else str(folder / journal)
    return StorageLocations(named, str(folder / "pictures"), **more)


async def test_a_lost_journal_does_not_take_the_pictures_along(tmp_path):
    async with open_storage(locations(tmp_path)):
        pass
    (tmp_path / "journal.db").unlink()
    picture = await add_picture(tmp_path)

    for journal in ("journal.db", "none"):
        with pytest.raises(InvalidStore, match="images of another journal"):
            async with open_storage(locations(tmp_path, journal)):
                pass
    assert picture.exists()

    async with open_storage(locations(tmp_path, adopts_store=True)):
        pass
    async with open_storage(locations(tmp_path)):
        pass


async def test_a_copy_of_a_journal_does_not_use_the_store_beside_it(tmp_path):
    async with open_storage(locations(tmp_path)) as (opened, _):
        with closing(sqlite3.connect(tmp_path / "journal.db")) as source:
            with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
                source.backup(copy)
            journal_id = await opened.id()
        with pytest.raises(InvalidStore, match="another gateway uses the store"):
            async with open_storage(locations(tmp_path, "copy.db")):
                pass
    async with open_storage(locations(tmp_path, "copy.db")) as (opened, _):
        assert await opened.id() == journal_id


async def test_gateways_that_share_a_journal_share_the_store(tmp_path):
    first, second, third = (open_store(str(tmp_path)) for _ in range(3))
    await first.hold(is_shared=True)
    await second.hold(is_shared=True)
    with pytest.raises(InvalidStore, match="another gateway uses the store"):
        await third.hold(is_shared=False)
    for store in (first, second, third):
        await store.close()


async def test_pictures_of_nobody_are_not_taken_for_those_of_a_new_journal(tmp_path):
    await add_picture(tmp_path)
    with pytest.raises(InvalidStore, match="images of another journal"):
        async with open_storage(locations(tmp_path)):
            pass


async def test_a_journal_and_its_store_can_be_moved_together(tmp_path):
    (tmp_path / "old").mkdir()
    async with open_storage(locations(tmp_path / "old")):
        pass
    await add_picture(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    async with open_storage(locations(tmp_path / "new")):
        pass


async def test_while_storage_fails_health_reports_it_and_no_run_is_accepted():
    async with web_gateway() as web:
        web.gateway.runs.storage_problem = "the journal /secret/place is gone"
        answer = await web.http.get("/health")
        assert answer.status_code == 503
        assert answer.json()["storage"]["complete"] is False
        assert "/secret" not in answer.text
        refused = await web.http.post("/runs", json={"spec": {"prompt": "a red house"}})
        assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "STORAGE_FAILED")
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be used now"):
            await web.gateway.stub.CreateRun(CreateRunRequest(spec=spec()))
        with pytest.raises(StorageFailed):
            await web.gateway.facade.create_run("", spec(), ALL)
        web.gateway.runs.storage_problem = ""
        assert (await web.http.get("/health")).status_code == 200
