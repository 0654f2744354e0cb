"""Journals of earlier releases: they are migrated whole or not at all, their runs continue, and the release before can use them."""

import asyncio
import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from gateway.journal import migration, schema
from gateway.journal.database import _Postgresql, _Sqlite, open_database
from gateway.journal.journal import open_journal
from gateway.journal.journal_file import InvalidJournal
from gateway.runs.manager import RunLimits
from gateway.runs.retention import EventsExpired
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.planning.test_masks import begin
from tests.gateway.postgresql import new_database
from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import RunState, SelectImagesRequest

ROOT = Path(__file__).parents[3]
BASE = Path(__file__).parent / "journals" / "0001"
# The last commit of the release before this one.
BEFORE = "265987752fc69e5f73389c1b1fe315bb3d47fc01"
DETACHED = RunLimits(abandon_grace_s=3600)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_journal(request, tmp_path):
    """Makes a journal of its own from a script in SQL, in each database; gives its address."""
    if request.param == "postgresql":
        return partial(new_database, request.getfixturevalue("server"))

    async def make(script: str = "") -> str:
        path = tmp_path / "journal.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
        return str(path)

    return make


@pytest.fixture
async def old_journal(new_journal, request):
    """One of the first release, with runs in every state, and no revision."""
    kind = request.node.callspec.params["new_journal"]
    return await new_journal((BASE / f"{kind}.sql").read_text())


async def read(address, work):
    async with open_database(address) as database:
        return await database.read(work)


def tables_of(connection) -> dict:
    """The tables as the database has them, with their columns, keys and indexes."""
    inspector = sa.inspect(connection)
    return {
        table: {
            "columns": {
                one["name"]: (str(one["type"]), one["nullable"]) for one in inspector.get_columns(table)
            },
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(one["column_names"] for one in inspector.get_unique_constraints(table)),
            "indexes": {
                one["name"]: one["column_names"] for one in inspector.get_indexes(table) if not one["unique"]
            },
        }
        for table in sorted(inspector.get_table_names())
    }


def rows_of(connection) -> dict:
    """All rows of the tables that are there, as text."""
    there = set(sa.inspect(connection).get_table_names())
    return {
        name: sorted(map(str, connection.execute(sa.text(f'SELECT * FROM "{name}"')).all()))
        for name in schema.metadata.tables
        if name in there
    }


async def on_journal(address, work):
    """Does the work in a transaction of a journal that is not opened, and so not migrated."""
    engine = _Postgresql(address) if "://" in address else _Sqlite(Path(address))
    try:
        return await engine.run(work, is_write=True)
    finally:
        await engine.close()


async def test_a_new_journal_has_the_tables_of_the_last_revision(new_journal, tmp_path):
    made = await read(await new_journal(), tables_of)

    def run_all_revisions(connection):
        schema.metadata.drop_all(connection)
        migration.revisions.drop(connection, checkfirst=True)
        migration._migrate(connection, None, schema.REVISIONS[-1], migration.SCRIPTS)
        return tables_of(connection)

    assert await on_journal(await new_journal(), run_all_revisions) == made


def test_the_list_of_revisions_is_that_of_the_folder():
    revisions = [*ScriptDirectory(str(migration.SCRIPTS)).walk_revisions()]
    assert tuple(one.revision for one in reversed(revisions)) == schema.REVISIONS


async def test_revisions_only_add_so_that_the_release_before_can_go_on(old_journal):
    before = await on_journal(old_journal, tables_of)
    after = await read(old_journal, tables_of)
    for table, was in before.items():
        now = after[table]
        assert {name: now["columns"][name] for name in was["columns"]} == was["columns"], table
        added = [column for name, column in now["columns"].items() if name not in was["columns"]]
        assert all(is_nullable for _, is_nullable in added), table
        assert (now["key"], now["unique"]) == (was["key"], was["unique"])


async def test_a_migrated_journal_has_the_tables_of_a_new_one_and_every_row(old_journal, new_journal):
    before = await on_journal(old_journal, rows_of)
    async with open_database(old_journal) as database:
        migrated = await database.read(tables_of)
        after = await database.read(rows_of)
    del before["about"], after["about"]
    assert {name: len(after[name]) for name in before} == {name: len(rows) for name, rows in before.items()}
    assert not any(after[name] for name in after.keys() - before.keys())
    for unchanged in ("events", "images", "expired"):
        assert after[unchanged] == before[unchanged]
    assert migrated == await read(await new_journal(), tables_of)


async def test_runs_in_every_state_go_on(old_journal, tmp_path):
    for sha256, data in json.loads((BASE / "pictures.json").read_text()).items():
        path = tmp_path / "pictures" / sha256[:2] / sha256[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
    async with (
        scripted_stages() as stages,
        gateway_over(await begin(stages), tmp_path, journal=old_journal, bounds=DETACHED) as gateway,
    ):
        rows = await gateway.runs.journal.reader.list_runs(None, None, 100)
        named = {
            await gateway.runs.journal.database.read(partial(_request_id, row.name)): row.name for row in rows
        }
        images = {}
        for request_id in ("succeeded", "masked", "partial", "failed", "selected", "cancelled"):
            run = await gateway.facade.get_run(named[request_id], ALL)
            images[request_id] = run.state, len(run.images)
            for image in run.images:
                assert (await gateway.facade.read_image(image.name, ALL))[1]
        assert images == {
            "succeeded": (RunState.RUN_STATE_SUCCEEDED, 5),
            "masked": (RunState.RUN_STATE_SUCCEEDED, 1),
            "partial": (RunState.RUN_STATE_PARTIALLY_SUCCEEDED, 5),
            "failed": (RunState.RUN_STATE_FAILED, 0),
            "selected": (RunState.RUN_STATE_SUCCEEDED, 3),
            "cancelled": (RunState.RUN_STATE_CANCELLED, 6),
        }
        queued = await run_finished(gateway, named["queued"])
        running = await run_finished(gateway, named["running"])
        assert (queued.state, len(queued.images)) == (RunState.RUN_STATE_SUCCEEDED, 2)
        # The image that failed stays failed, and the one that was under way is there now.
        assert running.state == RunState.RUN_STATE_PARTIALLY_SUCCEEDED
        assert f"{running.name}/images/generate-7" in [image.name for image in running.images]
        waiting = named["awaiting"]
        chosen = SelectImagesRequest.Selection(image=f"{waiting}/images/generate-1", refine={"count": 1})
        await gateway.facade.select_images("now", waiting, [chosen], ALL)
        await gateway.runs.live(waiting).wait()
        assert len((await gateway.facade.get_run(waiting, ALL)).images) == 3
        again = SelectImagesRequest.Selection(
            image=f"{named['succeeded']}/images/generate-0", refine={"count": 1}
        )
        await gateway.facade.select_images("later", named["succeeded"], [again], ALL)
        assert len((await run_finished(gateway, named["succeeded"])).images) == 6
        same = spec(generate={"count": 6}, refine=None, upscale=None)
        assert (await gateway.facade.create_run("partial", same, ALL)).name == named["partial"]
        await gateway.facade.delete_run(named["masked"], ALL)
        ((gone, *_),) = await gateway.runs.journal.database.read(
            lambda connection: connection.execute(sa.select(schema.expired)).all()
        )
        with pytest.raises(EventsExpired):
            await gateway.facade.get_run(gone, ALL)


def _request_id(name, connection):
    return connection.execute(
        sa.select(schema.runs.c.request_id).where(schema.runs.c.name == name)
    ).scalar_one()


MIGRATING = """
import asyncio, sys
from functools import partial
from pathlib import Path
from gateway.journal import database
from gateway.journal.migration import prepare
from gateway.journal.schema import REVISIONS

database.prepare = partial(prepare, known=(*REVISIONS, "9999"), scripts=Path(sys.argv[2]))

async def main():
    async with database.open_database(sys.argv[1]):
        pass

asyncio.run(main())
"""
KILLING = f"""
import os
import signal

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{schema.REVISIONS[-1]}"


def upgrade():
    op.create_table("half", sa.Column("done", sa.Text))
    op.execute("INSERT INTO half VALUES ('yes')")
    op.add_column("runs", sa.Column("half", sa.Text))
    op.execute("DELETE FROM events")
    os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_migration_that_is_killed_changes_nothing_and_is_made_again(old_journal, tmp_path):
    shutil.copytree(migration.SCRIPTS, tmp_path / "scripts")
    (tmp_path / "scripts" / "versions" / "9999_killing.py").write_text(KILLING)
    before = await on_journal(old_journal, tables_of), await on_journal(old_journal, rows_of)
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", MIGRATING, old_journal, tmp_path / "scripts"],
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (await on_journal(old_journal, tables_of), await on_journal(old_journal, rows_of)) == before
    assert await read(old_journal, migration.read_revision) == schema.REVISIONS[-1]


async def test_two_gateways_that_start_at_once_migrate_once(server):
    address = await new_database(server, (BASE / "postgresql.sql").read_text())

    async def open_once(name: str) -> int:
        async with open_journal(address, name) as journal:
            return len(await journal.reader.list_runs(None, None, 100))

    assert await asyncio.gather(*(open_once(name) for name in "abcd")) == [9] * 4
    assert await read(address, migration.read_revision) == schema.REVISIONS[-1]


async def test_tables_that_a_killed_gateway_has_left_are_completed(new_journal):
    half = await new_journal("CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);")
    complete = await read(half, tables_of)
    assert complete == await read(await new_journal(), tables_of)


async def test_a_journal_of_a_newer_version_is_refused_with_the_release_that_wrote_it(new_journal):
    address = await new_journal()

    def raise_version(connection):
        connection.execute(sa.text("UPDATE about SET value = '2' WHERE key = 'version'"))
        connection.execute(sa.text("UPDATE about SET value = '9.1.0' WHERE key = 'written_by'"))

    async with open_database(address) as database:
        await database.write(raise_version)
    with pytest.raises(
        InvalidJournal, match=r"version 2, and this gateway writes version 1.*Triptych 9\.1\.0"
    ):
        await read(address, tables_of)


async def test_a_newer_revision_of_the_same_version_is_used_as_it_is(new_journal, tmp_path, caplog):
    address = await new_journal()

    def migrate(connection):
        connection.execute(sa.text("ALTER TABLE runs ADD COLUMN later TEXT"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0999'"))

    async with open_database(address) as database:
        await database.write(migrate)
    async with (
        scripted_stages() as stages,
        gateway_over(stages, tmp_path, journal=address) as gateway,
    ):
        run = await gateway.facade.create_run("", spec(refine=None, upscale=None), ALL)
        assert (await run_finished(gateway, run.name)).state == RunState.RUN_STATE_SUCCEEDED
        assert await gateway.runs.journal.database.read(migration.read_revision) == "0999"
    assert "was migrated by a newer gateway (revision 0999" in caplog.text


CONTINUING = """
import asyncio, sys
from pathlib import Path
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.run_fixtures import ALL, run_finished, spec

async def main(journal, folder, name):
    async with scripted_stages() as stages, gateway_over(stages, Path(folder), journal=journal) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        old = await gateway.facade.get_run(name, ALL)
        new = await run_finished(gateway, run.name)
        print(old.state, len(old.images), new.state, len(new.images))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def release_before(tmp_path_factory):
    """A folder with the code of the release before this one, and its tests' scripted stages."""
    folder = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ["git", "archive", BEFORE, "gateway", "services", "triptych", "tests/gateway", "tests/__init__.py"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip("this checkout has no history")
    subprocess.run(["tar", "x", "--exclude=*.safetensors"], cwd=folder, input=archive.stdout, check=True)
    return folder


async def test_the_release_before_goes_on_with_a_journal_of_this_one(new_journal, tmp_path, release_before):
    address = await new_journal()
    async with scripted_stages() as stages, gateway_over(stages, tmp_path, journal=address) as gateway:
        run = await gateway.facade.create_run("", spec(), ALL)
        await run_finished(gateway, run.name)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CONTINUING, address, tmp_path, run.name],
        cwd=release_before,
        env={**os.environ, "PYTHONPATH": str(release_before)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("4 5 4 5\n", 0), done.stderr
    async with scripted_stages() as stages, gateway_over(stages, tmp_path, journal=address) as gateway:
        runs, _ = await gateway.facade.list_runs(ALL)
        assert [(one.state, len(one.images)) for one in runs] == [(RunState.RUN_STATE_SUCCEEDED, 5)] * 2
