"""Export and import of runs with their pictures, and the drill of a restore: what is missing is reported and cleaned up."""

import asyncio
import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
from contextlib import asynccontextmanager, closing

import pytest
from click.testing import CliRunner

from gateway.journal.archive.format import ArchivedRun, InvalidArchive
from gateway.journal.archive.reader import check_archive
from gateway.journal.command import journal as journal_command
from gateway.journal.storage_audit import StorageAudit
from gateway.runs.retention import EventsExpired
from gateway.store.base import ImageExpired
from tests.gateway.fake_stage import gateway_over, scripted_stages
from tests.gateway.journal.write_journal import BOUNDS, write_runs
from tests.gateway.planning.test_masks import begin
from tests.gateway.postgresql import new_database
from tests.gateway.run_fixtures import ALL, run_finished, spec
from triptych.v1.pipeline_pb2 import RunState

SKETCHES = {"refine": None, "upscale": None}


def invoke(*arguments: object):
    """The exit code and all that was printed. The command has an event loop of its own."""
    done = CliRunner().invoke(journal_command, [str(one) for one in arguments])
    return done.exit_code, done.output + "".join(filter(None, [str(done.exception or "")]))


async def command(*arguments: object):
    return await asyncio.to_thread(invoke, *arguments)


@asynccontextmanager
async def gateway_in(folder, journal=""):
    """A gateway with its journal and pictures in that folder."""
    folder.mkdir(exist_ok=True)
    async with (
        scripted_stages() as stages,
        gateway_over(await begin(stages), folder, journal=journal, bounds=BOUNDS) as gateway,
    ):
        yield gateway


async def all_runs(gateway):
    runs, _ = await gateway.facade.list_runs(ALL, page_size=100)
    return {run.name: run for run in runs}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a gateway that has stopped, with runs in every state, and its runs."""
    folder = tmp_path_factory.mktemp("kept")

    async def write():
        async with gateway_in(folder) as gateway:
            await write_runs(gateway)
            return await all_runs(gateway)

    return folder, asyncio.run(write())


@pytest.fixture(scope="module")
def archive(kept, tmp_path_factory):
    folder, _ = kept
    path = tmp_path_factory.mktemp("archive") / "runs.tar"
    code, output = invoke("export", path, "--journal", folder / "journal.db", "--unfinished")
    assert code == 0, output
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
async def target(request, tmp_path):
    """A folder, and the address of an empty journal."""
    if request.param == "postgresql":
        return tmp_path, await new_database(request.getfixturevalue("server"))
    return tmp_path, str(tmp_path / "journal.db")


async def test_every_run_is_imported_with_its_pictures_and_goes_on(kept, archive, target):
    folder, address = target
    places = "--journal", address, "--store", folder / "pictures"
    code, output = await command("import", archive, *places)
    assert (code, "imported 9 runs; 0 were there already" in output) == (0, True), output
    code, output = await command("import", archive, *places)
    assert "imported 0 runs; 9 were there already" in output
    code, output = await command("compare", *places)
    assert (code, "no picture is missing" in output) == (0, True), output
    async with gateway_in(folder, address) as gateway:
        runs = await all_runs(gateway)
        assert runs.keys() == kept[1].keys()
        for name, before in kept[1].items():
            if before.state in (RunState.RUN_STATE_QUEUED, RunState.RUN_STATE_RUNNING):
                after = await run_finished(gateway, name)
                assert after.state in (RunState.RUN_STATE_SUCCEEDED, RunState.RUN_STATE_PARTIALLY_SUCCEEDED)
                continue
            assert runs[name] == before
            for image in before.images:
                assert (await gateway.facade.read_image(image.name, ALL))[1]
        # As at the gateway that they come from: a request_id makes no second run.
        again = await gateway.facade.create_run("partial", spec(**SKETCHES, generate={"count": 6}), ALL)
        assert again.name in kept[1]


async def test_runs_under_way_are_left_out_unless_asked_for(kept, tmp_path):
    folder, runs = kept
    code, output = await command("export", tmp_path / "some.tar", "--journal", folder / "journal.db")
    assert (code, "7 runs" in output, "2 runs are under way" in output) == (0, True, True), output
    some = next(iter(runs))
    await command("export", tmp_path / "one.tar", some, "--journal", folder / "journal.db", "--unfinished")
    assert check_archive(tmp_path / "one.tar").num_runs == 1


async def test_a_request_id_that_another_run_has_is_left_out(archive, tmp_path):
    async with gateway_in(tmp_path) as gateway:
        own = await gateway.facade.create_run("partial", spec(**SKETCHES), ALL)
        await run_finished(gateway, own.name)
    code, output = await command("import", archive, "--journal", tmp_path / "journal.db")
    assert (code, "its request_id is another run's" in output) == (0, True), output


def test_an_archive_is_checked_by_ordinary_tools(archive, tmp_path):
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == sum(1 for path in tmp_path.rglob("*") if path.is_file()) - 1
    for line in lines:
        sha256, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


def rewritten(archive, path, change):
    """The archive with its members as `change` gives them: from (name, data) to a list of such pairs."""
    with tarfile.open(archive) as tar, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as out:
        sums = ""
        for member in tar:
            data = tar.extractfile(member).read()
            for name, new in change(member.name, data):
                if name == "SHA256SUMS" and new == data:
                    new = sums.encode()
                info = tarfile.TarInfo(name)
                info.size = len(new)
                out.addfile(info, io.BytesIO(new))
                sums += f"{hashlib.sha256(new).hexdigest()}  {name}\n"
    return path


def run_with(**fields):
    """Changes fields of every run."""

    def change(name, data):
        if not name.startswith("runs/"):
            return [(name, data)]
        return [(name, json.dumps({**json.loads(data), **fields}).encode())]

    return change


def only(condition):
    return lambda name, data: [(name, data)] if condition(name) else []


def extra(name, data=b"x"):
    return lambda member, content: [(member, content)] + ([(name, data)] if member == "archive.json" else [])


def picture_changed(name, data):
    return [(name, data[:-1] + b"x" if name.startswith("pictures/") else data)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (extra("../../etc/passwd"), "no export writes"),
        (extra("/etc/passwd"), "no export writes"),
        (extra("pictures/../../x"), "no export writes"),
        (extra("runs/0123456789ABCDEF.json"), "no export writes"),
        (extra("runs/0123456789abcdef.json", b"[" * 100_000), "is no run"),
        (extra("runs/0123456789abcdef.json", b"9" * 10_000), "is no run"),
        (extra("pictures/" + "0" * 64), "other bytes than its name"),
        (picture_changed, "other bytes than its name"),
        (only(lambda name: name != "SHA256SUMS"), "is cut off"),
        (only(lambda name: name != "archive.json"), "is no archive of runs"),
        (lambda name, data: [(name, data)] * 2, "twice"),
        (lambda name, data: [(name, data.replace(b'"format": 1', b'"format": 9'))], "reads format 1"),
        (
            lambda name, data: [(name, data + b" " if name == "SHA256SUMS" else data)],
            "is not what SHA256SUMS",
        ),
        (run_with(name="runs/../../../../x"), "is no run"),
        (run_with(name="runs/0123456789abcdef"), "is no run"),
        (run_with(caller="a\0b"), "is no run"),
        (run_with(deadline_ns=2**70), "is no run"),
        (run_with(is_detached="yes"), "is no run"),
        (run_with(asked="00"), "is no run"),
        (run_with(events=[]), "is no run"),
        (run_with(events=["AAAA"]), "is no run"),
        (run_with(events=[""]), "is no run"),
        (run_with(init_images=["CgF4"]), "is no run"),
        (run_with(traceparent="x; DROP TABLE"), "is no run"),
    ],
)
def test_an_archive_that_no_export_wrote_is_refused_and_nothing_is_taken(archive, tmp_path, change, problem):
    path = rewritten(archive, tmp_path / "changed.tar", change)
    code, output = invoke(
        "import", path, "--journal", tmp_path / "journal.db", "--store", tmp_path / "pictures"
    )
    assert (code, problem in output) == (1, True), output
    assert sorted(one.name for one in tmp_path.iterdir()) == ["changed.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        member = tarfile.TarInfo("archive.json")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(InvalidArchive, match="no export writes"):
        check_archive(tmp_path / "odd.tar")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_was_cut_off_is_refused(archive, tmp_path, share):
    data = archive.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data.rstrip(b"\0")) * share)])
    with pytest.raises(InvalidArchive):
        check_archive(tmp_path / "cut.tar")


def test_an_archive_that_cannot_be_completed_does_not_appear(kept, tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArchivedRun, "to_json", full)
    code, _ = invoke("export", tmp_path / "runs.tar", "--journal", kept[0] / "journal.db")
    assert (code, list(tmp_path.iterdir())) == (1, [])


@pytest.fixture
async def two_days(tmp_path):
    """A gateway's folder after two runs, copies of its journal and its store from between them, and the runs."""
    async with gateway_in(tmp_path / "today") as gateway:
        old = await run_finished(gateway, (await gateway.facade.create_run("", spec(), ALL)).name)
        with (
            closing(sqlite3.connect(tmp_path / "today" / "journal.db")) as source,
            closing(sqlite3.connect(tmp_path / "yesterday.db")) as copy,
        ):
            source.backup(copy)
        shutil.copytree(tmp_path / "today" / "pictures", tmp_path / "yesterday")
        asked = spec(generate={"count": 3})
        asked.seed = 7000
        new = await run_finished(gateway, (await gateway.facade.create_run("", asked, ALL)).name)
    return tmp_path / "today", tmp_path / "yesterday", old, new


async def test_yesterdays_journal_with_todays_store_serves_what_it_has(two_days):
    folder, yesterday, old, new = two_days
    for path in folder.glob("journal.db*"):
        path.unlink()
    shutil.move(yesterday.with_suffix(".db"), folder / "journal.db")
    code, output = await command("compare", "--journal", folder / "journal.db")
    assert (code, "no picture is missing" in output) == (0, True), output
    assert "belong to no run" in output
    async with gateway_in(folder) as gateway:
        assert (await all_runs(gateway)).keys() == {old.name}
        for image in old.images:
            assert (await gateway.facade.read_image(image.name, ALL))[0].sha256 == image.sha256
        again = await gateway.facade.create_run("", spec(), ALL)
        assert (await run_finished(gateway, again.name)).state == RunState.RUN_STATE_SUCCEEDED


async def test_todays_journal_with_yesterdays_store_reports_what_is_missing_and_is_cleaned_up(
    two_days, caplog
):
    folder, yesterday, old, new = two_days
    shutil.rmtree(folder / "pictures")
    shutil.move(yesterday, folder / "pictures")
    # The scripted upscaler makes one and the same picture for both runs.
    num_images, num_lost = len(new.images), len(new.images) - 1
    places = "--journal", folder / "journal.db"
    async with gateway_in(folder) as gateway:
        audit = StorageAudit(gateway.runs.journal.reader, gateway.runs.store)
        await audit.run()
        assert str(audit.differences) == f"{num_lost} pictures of 1 runs are missing in the store"
        assert f"{new.name} lacks {num_lost} of its {num_images} pictures" in caplog.text
        assert await gateway.facade.get_run(new.name, ALL) == new
        with pytest.raises(ImageExpired):
            await gateway.facade.read_image(new.images[0].name, ALL)
        again = await gateway.facade.create_run("", spec(), ALL)
        assert (await run_finished(gateway, again.name)).state == RunState.RUN_STATE_SUCCEEDED
    code, output = await command("compare", *places)
    assert (code, f"{new.name} lacks {num_lost} of {num_images} pictures: " in output) == (1, True), output
    assert (await command("prune", *places, "--dry-run"))[0] == 0
    assert (await command("prune", *places, "--yes"))[1].count(f"deleted {new.name}") == 1
    assert (await command("compare", *places))[0] == 0
    async with gateway_in(folder) as gateway:
        assert (await all_runs(gateway)).keys() == {old.name, again.name}
        with pytest.raises(EventsExpired):
            await gateway.facade.get_run(new.name, ALL)


@pytest.mark.parametrize("missing", ["journal", "store"])
def test_a_place_that_is_not_there_is_an_error_and_is_not_made(tmp_path, missing):
    if missing == "store":
        (tmp_path / "journal.db").touch()
    code, output = invoke("prune", "--journal", tmp_path / "journal.db")
    assert (code, f"there is no {missing}" in output) == (1, True)
    assert not (tmp_path / "pictures").exists()
