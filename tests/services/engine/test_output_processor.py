"""Delivery with a clock of the test's own: how much of the time goes into previews."""

import asyncio

import numpy as np
import pytest

from services.engine.events import EventMailbox
from services.engine.output_processor import (
    PREVIEW_CREDIT_S,
    PREVIEW_SHARE,
    OutputProcessor,
    Request,
    ScheduledJob,
)
from services.engine.stepper import JobRequest

NUM_STEPS = 200


@pytest.mark.parametrize("preview_s", [0.05, 1.0, 7.0])
async def test_previews_take_no_more_than_their_share_of_the_steps_time(preview_s):
    """Steps of a second, a preview of `preview_s` wanted after each."""
    now = [0.0]
    num_previews = 0

    def decode(views):
        now[0] += preview_s
        return [np.zeros((4, 4, 3), np.uint8) for _ in views]

    delivery = OutputProcessor(decode, lambda: now[0])
    request = Request("me", EventMailbox(1), asyncio.get_running_loop(), None)
    work = ScheduledJob(JobRequest(0, "job"), request, accepted_at=0.0, num_steps=NUM_STEPS)
    for _ in range(NUM_STEPS):
        delivery.add_step_time(1.0)
        if delivery.previews_allowed:
            delivery.deliver_previews([work], ["view"])
            num_previews += 1
            await asyncio.to_thread(delivery._encoder.submit(lambda: None).result)
    await asyncio.to_thread(delivery.close)
    # The last one may begin with hardly any time left.
    assert num_previews * preview_s <= PREVIEW_SHARE * NUM_STEPS + PREVIEW_CREDIT_S + preview_s
    assert num_previews >= min(NUM_STEPS, PREVIEW_SHARE * NUM_STEPS / preview_s)
