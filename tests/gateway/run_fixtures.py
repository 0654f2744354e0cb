"""Runs as tests ask for them, and what their events say."""

from gateway.access.caller import Caller
from triptych.v1.pipeline_pb2 import RunSpec

ALL = Caller("everybody", sees_all=True)


def spec(**more) -> RunSpec:
    """Two sketches, the best one -> two variations, the best one -> upscaled; seed 100."""
    settings = {"generate": {"count": 2}, "refine": {"count": 2}, "upscale": {}}
    asked = RunSpec(prompt="a red house", seed=100)
    for stage, fields in {**settings, **more}.items():
        if fields is None:
            continue
        if stage in ("automatic", "manual"):
            getattr(asked, stage).CopyFrom(type(getattr(asked, stage))(**fields))
        else:
            getattr(asked, stage).SetInParent()
            for name, value in fields.items():
                setattr(getattr(asked, stage), name, value)
    return asked


async def collect(gateway, asked, **more):
    return [event async for event in gateway.client.stream_run(asked, **more)]


async def run_finished(gateway, name):
    """The run when it has finished."""
    await whole_log(gateway, name)
    return await gateway.facade.get_run(name, ALL)


async def whole_log(gateway, name):
    """All events of a run up to its end."""
    return [event async for event in gateway.facade.watch_run(name, ALL)]


def lasting(events):
    """What every watcher gets, and what is kept: all but previews."""
    return [event for event in events if not event.HasField("preview")]


def warnings(events):
    return [event.warning for event in events if event.HasField("warning")]


def attempts(events, index):
    """The workers that an image was asked of, each with the number of the attempt."""
    started = [event.stage_started for event in events if event.HasField("stage_started")]
    return [(one.worker, one.attempt) for one in started if one.indexes == [index]]


def kinds(events):
    return [event.WhichOneof("kind") for event in events]


def ready(events, stage=None):
    images = [event.image_ready.image for event in events if event.HasField("image_ready")]
    return [one for one in images if stage in (None, one.stage)]


def finished(events):
    return events[-1].finished
