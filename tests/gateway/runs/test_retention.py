"""What goes when there is too much, or it is too old; on a real journal and a real folder."""

import os
import time
from pathlib import Path

import pytest

from gateway.events.event_log import EventLog
from gateway.events.run_state import RunState
from gateway.journal.journal import NewRun, open_journal
from gateway.runs.recorder import first_event
from gateway.runs.retention import DAY_S, UNTOLD_AGE_S, Retention, RetentionLimits, SweepResult
from gateway.store.folder import FolderStore
from services.errors import NotFound
from triptych.v1.pipeline_pb2 import Event, Image, RunSpec, RunState as ProtoRunState

PICTURE_BYTES = 1000


class Kept:
    """Runs with pictures in a journal and a folder, of whatever age a test wants."""

    def __init__(self, journal, store, folder: Path) -> None:
        self.journal = journal
        self.store = store
        self.folder = folder

    async def add(self, name: str, *pictures: bytes, age_s: float = 0.0, is_finished: bool = True) -> None:
        run = f"runs/{name}"
        first = first_event(run, RunSpec(prompt="a red house"), [])
        await self.journal.add_run(run, NewRun("somebody", "", b"", True, None), first, {})
        written = Written(run, self.journal, first)
        for index, data in enumerate(pictures):
            sha256 = await self.store.put(data)
            image = Image(name=f"{run}/images/generate-{index}", sha256=sha256)
            written.tell(Event(image_ready=Event.ImageReady(image=image)))
        if is_finished:
            finished = Event(finished=Event.Finished(state=ProtoRunState.RUN_STATE_SUCCEEDED))
            finished.time.FromNanoseconds(time.time_ns() - int(age_s * 1e9))
            written.tell(finished)
        await self.journal.flush(written)

    async def runs(self) -> set[str]:
        return {
            row.name.removeprefix("runs/") for row in await self.journal.reader.list_runs(None, None, 100)
        }

    async def pictures(self) -> set[bytes]:
        return {(await self.store.get(one.sha256))[:1] async for one in self.store.iterate()}

    def make_old(self) -> None:
        """As if all pictures so far had been kept a while ago."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                os.utime(path, (0, time.time() - UNTOLD_AGE_S - 1))

    async def sweep(self, **keep) -> SweepResult:
        return await Retention(RetentionLimits(**keep), self.journal, self.store).sweep()


class Written:
    """A run whose events go to the journal with times of our own."""

    def __init__(self, name, journal, first) -> None:
        self.name = name
        self.traceparent = ""
        self.run = RunState([first])
        self.log = EventLog(lambda event: journal.write(self, event), [first])

    def tell(self, event: Event) -> None:
        dated = Event()
        dated.CopyFrom(event)
        self.log.assign_sequence(event)
        if dated.HasField("time"):
            event.time.CopyFrom(dated.time)
        self.run.add(event)
        self.log.append(event)


def picture(letter: bytes) -> bytes:
    return letter * PICTURE_BYTES


@pytest.fixture
async def kept(tmp_path):
    async with open_journal(str(tmp_path / "journal.db"), "this gateway") as journal:
        store = FolderStore(tmp_path / "pictures")
        yield Kept(journal, store, tmp_path / "pictures")
        await store.close()


async def test_without_limits_everything_stays(kept):
    await kept.add("old", picture(b"a"), age_s=1000 * DAY_S)
    kept.make_old()
    assert await kept.sweep() == SweepResult()
    assert await kept.runs() == {"old"}


async def test_runs_that_ended_too_long_ago_go_with_their_pictures(kept):
    await kept.add("old", picture(b"a"), picture(b"b"), age_s=3 * DAY_S)
    await kept.add("new", picture(b"c"), age_s=1 * DAY_S)
    kept.make_old()
    assert await kept.sweep(age_s=2 * DAY_S) == SweepResult(1, 2, 2 * PICTURE_BYTES)
    assert await kept.runs() == {"new"}
    assert await kept.pictures() == {b"c"}


async def test_where_pictures_take_too_much_room_the_oldest_runs_go(kept):
    for age, (name, letter) in enumerate([("newest", b"a"), ("middle", b"b"), ("oldest", b"c")]):
        await kept.add(name, picture(letter), age_s=age * DAY_S)
    kept.make_old()
    await kept.sweep(num_bytes=2 * PICTURE_BYTES)
    assert await kept.runs() == {"newest", "middle"}
    assert await kept.pictures() == {b"a", b"b"}


async def test_pictures_that_just_fit_stay(kept):
    await kept.add("one", picture(b"a"))
    kept.make_old()
    await kept.sweep(num_bytes=PICTURE_BYTES)
    assert await kept.runs() == {"one"}


async def test_a_picture_that_another_run_has_stays(kept):
    await kept.add("old", picture(b"a"), picture(b"b"), age_s=3 * DAY_S)
    await kept.add("new", picture(b"a"))
    kept.make_old()
    await kept.sweep(age_s=DAY_S)
    assert await kept.pictures() == {b"a"}


async def test_a_run_that_is_under_way_never_goes(kept):
    await kept.add("under way", picture(b"a"), is_finished=False)
    kept.make_old()
    await kept.sweep(age_s=0.0, num_bytes=0)
    assert await kept.runs() == {"under way"}
    assert await kept.pictures() == {b"a"}


async def test_a_picture_that_no_run_has_goes_once_it_is_old(kept):
    await kept.store.put(picture(b"a"))
    kept.make_old()
    await kept.sweep()
    assert await kept.pictures() == set()


async def test_a_picture_that_no_run_reports_yet_stays(kept):
    await kept.store.put(picture(b"a"))
    await kept.sweep(num_bytes=0)
    assert await kept.pictures() == {b"a"}


async def test_a_young_picture_of_a_run_that_expired_goes_later(kept):
    await kept.add("old", picture(b"a"), age_s=DAY_S)
    await kept.sweep(age_s=1.0)
    assert await kept.pictures() == {b"a"}
    kept.make_old()
    await kept.sweep(age_s=1.0)
    assert await kept.pictures() == set()


async def test_an_expired_run_is_remembered_with_its_caller(kept):
    await kept.add("old", picture(b"a"), age_s=DAY_S)
    before = time.time()
    await kept.sweep(age_s=1.0)
    caller, expired_at = await kept.journal.reader.find_expired("runs/old")
    assert caller == "somebody"
    assert before - 1 <= expired_at <= time.time()


async def test_a_run_that_was_deleted_by_hand_is_not_remembered(kept):
    await kept.add("old", picture(b"a"))
    await kept.journal.delete_run("runs/old")
    assert await kept.journal.reader.find_expired("runs/old") is None


async def test_of_runs_that_expired_long_ago_nothing_is_left(kept):
    await kept.add("old", picture(b"a"), age_s=DAY_S)
    await kept.sweep(age_s=1.0)
    await kept.journal.forget_expired(time.time() + 1)
    assert await kept.journal.reader.find_expired("runs/old") is None


async def test_more_runs_than_one_question_brings_all_go(kept, monkeypatch):
    monkeypatch.setattr("gateway.runs.retention.AT_ONCE", 2)
    for number in range(5):
        await kept.add(str(number), picture(b"%d" % number), age_s=DAY_S)
    kept.make_old()
    assert await kept.sweep(age_s=1.0) == SweepResult(5, 5, 5 * PICTURE_BYTES)
    with pytest.raises(NotFound):
        await kept.store.get("0" * 64)
