"""A stage's service in the test's own process, on a free port around its model."""

from contextlib import asynccontextmanager

from services.engine.engine import Engine
from services.serving.channels import open_channel
from services.serving.server import serving


@asynccontextmanager
async def serving_stage(service, add_to_server, service_name, loaded, *, max_queue):
    """Yields a channel to it."""
    async with (
        Engine(loaded.stepper, max_queue=max_queue) as engine,
        serving(lambda server: add_to_server(service, server), services=[service_name]) as running,
        open_channel(running.address) as channel,
    ):
        service.set_ready(loaded, engine)
        yield channel
