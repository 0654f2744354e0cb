"""Selections as a caller makes them, and what they lead to."""

import pytest

from tests.gateway.run_fixtures import collect, spec
from triptych.errors import InvalidRequest
from triptych.v1.pipeline_pb2 import RunState, SelectImagesRequest

MANUAL = {"manual": {}}


def selection(name, **stage):
    return SelectImagesRequest.Selection(image=name, **stage)


async def manual_run(gateway, **more):
    """A run that waits for its first choice: its name, and its events so far."""
    run = await gateway.client.create_run(spec(**MANUAL, **more))
    return run.name, await until_it_rests(gateway, run.name)


async def automatic_run(gateway, **more):
    return (await collect(gateway, spec(**more)))[0].state.run


async def until_it_rests(gateway, name, after_sequence=0):
    """Its events from there to where it finishes or waits for a choice."""
    events = []
    async for event in gateway.client.watch_run(name, after_sequence=after_sequence):
        events.append(event)
        if event.state.state == RunState.RUN_STATE_AWAITING_SELECTION:
            break
    return events


async def select(gateway, name, *selections, request_id=""):
    """The events that a selection leads to."""
    before = (await gateway.client.get_run(name)).last_sequence
    await gateway.client.select_images(name, selections, request_id=request_id)
    return await until_it_rests(gateway, name, before)


def short(names):
    return [name.rpartition("/")[2] for name in names]


async def refused(gateway, name, *selections):
    """The field that is refused, and why."""
    with pytest.raises(InvalidRequest) as raised:
        await gateway.client.select_images(name, selections)
    ((field, description),) = raised.value.violations.items()
    return field, description
