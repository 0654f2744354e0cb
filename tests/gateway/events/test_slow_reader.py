"""The event log: numbers without gaps, and readers who are slower than the run."""

from collections.abc import AsyncIterator

from gateway.events.event_log import EventLog
from tests.gateway.run_fixtures import run_finished, spec
from tests.waiting import underway
from triptych.v1.pipeline_pb2 import Event, Image, RunState, StreamRunRequest
from triptych.v1.stage_pb2 import ImageData, Stage


def new_log() -> EventLog:
    """A log whose events are written down at once."""
    return resumed([])


def resumed(events) -> EventLog:
    """A log that goes on after these."""
    log = EventLog(lambda event: log.publish(event.sequence), events)
    return log


def preview(index: int, data: bytes = b"") -> Event:
    shown = Event.ImagePreview(stage=Stage.STAGE_GENERATE, index=index, image=ImageData(data=data))
    return Event(preview=shown)


def image_ready(index: int) -> Event:
    return Event(image_ready=Event.ImageReady(image=Image(stage=Stage.STAGE_GENERATE, index=index)))


def closed(log: EventLog) -> AsyncIterator[Event]:
    log.close()
    return log.follow()


async def sequences(log: EventLog, after: int = 0) -> list[int]:
    return [event.sequence async for event in log.follow(after)]


async def test_events_are_numbered_from_one_without_gaps():
    log = new_log()
    for _ in range(3):
        log.append(Event(warning={}))
    log.close()
    assert await sequences(log) == [1, 2, 3]
    assert log.last_sequence == 3


async def test_a_reader_can_begin_after_any_event():
    log = new_log()
    for _ in range(3):
        log.append(Event(warning={}))
    log.close()
    assert await sequences(log, after=2) == [3]
    assert await sequences(log, after=9) == []


async def test_a_newer_preview_replaces_the_one_before_of_the_same_image():
    log = new_log()
    for index in (0, 1, 0):
        log.append(preview(index))
    log.close()
    assert await sequences(log) == [2, 3]


async def test_a_finished_image_replaces_its_preview():
    log = new_log()
    log.append(preview(0))
    log.append(image_ready(0))
    log.close()
    assert await sequences(log) == [2]


async def test_a_reader_who_keeps_up_sees_every_preview():
    log = new_log()
    seen = []
    log.append(preview(0))
    async for event in log.follow():
        seen.append(event.sequence)
        if len(seen) < 5:
            log.append(preview(0))
        else:
            log.close()
    assert seen == [1, 2, 3, 4, 5]


async def test_what_a_slow_reader_costs_does_not_grow_with_the_previews():
    log = new_log()
    follower = log.follow()
    log.append(Event(warning={}))
    await anext(follower)
    for _ in range(1000):
        log.append(preview(0, bytes(10_000)))
    kept = sum(event.ByteSize() for event in log._events if event is not None)
    assert kept < 20_000
    assert (await anext(follower)).sequence == 1001


async def test_a_reader_sees_no_event_before_it_is_written_down():
    written = []
    log = EventLog(lambda event: written.append(event.sequence))
    follower = log.follow()
    log.append(Event(warning={}))
    waiting = await underway(anext(follower))
    assert (written, waiting.done()) == ([1], False)
    log.publish(1)
    assert (await waiting).sequence == 1


async def test_a_log_goes_on_after_the_events_that_it_is_made_from():
    first = new_log()
    for _ in range(2):
        first.append(Event(warning={}))
    second = resumed([event async for event in closed(first)])
    second.append(Event(warning={}))
    second.close()
    assert await sequences(second) == [1, 2, 3]


async def test_previews_that_were_not_kept_leave_their_numbers():
    log = resumed([Event(sequence=1), Event(sequence=4)])
    log.append(Event(warning={}))
    log.close()
    assert await sequences(log) == [1, 4, 5]


async def test_readers_of_an_abandoned_log_stop_where_it_stands():
    log = new_log()
    log.append(Event(warning={}))
    log.disown()
    log.append(Event(warning={}))
    assert await sequences(log) == [1]


async def test_a_reader_who_stops_reading_does_not_hold_up_the_run(gateway):
    gateway.generator.num_previews = 30
    gateway.generator.preview_bytes = 2**20
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec()))
    name = (await call.read()).event.state.run
    assert (await run_finished(gateway, name)).state == RunState.RUN_STATE_SUCCEEDED
    call.cancel()


async def test_a_slow_reader_gets_every_picture_and_fewer_previews(gateway):
    gateway.generator.num_previews = 30
    gateway.generator.preview_bytes = 2**20
    call = gateway.stub.StreamRun(StreamRunRequest(spec=spec()))
    events = [(await call.read()).event]
    await run_finished(gateway, events[0].state.run)
    while not events[-1].HasField("finished"):
        events.append((await call.read()).event)
    pictures = [event.image_ready.image for event in events if event.HasField("image_ready")]
    assert len(pictures) == 5
    assert all(picture.data for picture in pictures)
    assert sum(event.HasField("preview") for event in events) < 60
    numbers = [event.sequence for event in events]
    assert numbers == sorted(set(numbers))
