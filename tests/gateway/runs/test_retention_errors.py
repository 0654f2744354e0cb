"""What callers get who come back for what is not kept any more."""

import time

import pytest

from gateway.access.caller import Caller
from gateway.runs.retention import EventsExpired
from gateway.store.base import ImageExpired
from services.errors import NotFound
from tests.gateway.run_fixtures import spec

ANN, BEN = Caller("ann"), Caller("ben")
SKETCHES = {"refine": None, "upscale": None}


@pytest.fixture
async def finished(gateway):
    """The name of a run of Ann's, as it was before it expired."""
    run = await gateway.facade.create_run("once", spec(**SKETCHES), ANN)
    assert [event async for event in gateway.facade.watch_run(run.name, ANN)]
    await gateway.runs.evict(live) if (live := gateway.runs.live(run.name)) else None
    return run.name


async def expire(gateway, name):
    assert await gateway.runs.journal.delete_run(name, expired_at=time.time()) is not None


async def test_a_run_that_expired_is_not_found_and_explains_why(gateway, finished):
    await expire(gateway, finished)
    with pytest.raises(EventsExpired, match="were deleted on 20.* make the run again with the same seed"):
        await gateway.facade.get_run(finished, ANN)


async def test_the_events_of_a_run_that_expired_are_said_to_be_gone(gateway, finished):
    await expire(gateway, finished)
    with pytest.raises(EventsExpired):
        await anext(gateway.facade.watch_run(finished, ANN))


async def test_the_pictures_of_a_run_that_expired_are_said_to_be_gone(gateway, finished):
    await expire(gateway, finished)
    with pytest.raises(EventsExpired):
        await gateway.facade.read_image(f"{finished}/images/generate-0", ANN)


async def test_of_the_expired_runs_of_others_nothing_is_reported(gateway, finished):
    await expire(gateway, finished)
    with pytest.raises(NotFound) as refused:
        await gateway.facade.get_run(finished, BEN)
    assert refused.value.reason == "NOT_FOUND"


async def test_a_replay_that_a_run_expires_under_does_not_end_as_if_it_were_whole(
    gateway, finished, monkeypatch
):
    monkeypatch.setattr("gateway.journal.reader.EVENTS_PER_READ", 3)
    events = gateway.facade.watch_run(finished, ANN)
    seen = [await anext(events)]
    await expire(gateway, finished)
    with pytest.raises(EventsExpired):
        seen += [event async for event in events]
    assert not seen[-1].HasField("finished")


async def test_the_request_id_of_a_run_that_expired_makes_a_new_one(gateway, finished):
    await expire(gateway, finished)
    again = await gateway.facade.create_run("once", spec(**SKETCHES), ANN)
    assert again.name != finished


async def test_a_picture_that_is_not_kept_any_more_is_an_error_that_explains_it(gateway, finished):
    image, _ = await gateway.facade.read_image(f"{finished}/images/generate-0", ANN)
    await gateway.runs.store.delete(image.sha256)
    with pytest.raises(ImageExpired, match="not any more; make it again with the same seed"):
        await gateway.facade.read_image(image.name, ANN)


async def test_a_run_is_replayed_without_pictures_that_are_not_kept_any_more(gateway, finished):
    image, _ = await gateway.facade.read_image(f"{finished}/images/generate-0", ANN)
    await gateway.runs.store.delete(image.sha256)
    events = [event async for event in gateway.facade.watch_run(finished, ANN)]
    [reported] = [event.image_ready.image for event in events if event.image_ready.image.name == image.name]
    assert (reported.sha256, reported.data) == (image.sha256, b"")
    assert events[-1].HasField("finished")
