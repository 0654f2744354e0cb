import pytest

from tests.gateway.fake_stage import ScriptedGenerator, pipeline


@pytest.fixture
async def gateway():
    """A gateway over one scripted worker of each stage."""
    async with pipeline() as running:
        yield running


@pytest.fixture
async def worker():
    """A generator that no gateway knows."""
    scripted = ScriptedGenerator()
    await scripted.start()
    yield scripted
    await scripted.kill()


@pytest.fixture
async def other():
    """Another one, with another model."""
    scripted = ScriptedGenerator(digest="d2")
    await scripted.start()
    yield scripted
    await scripted.kill()
