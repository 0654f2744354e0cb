import pytest

from tests.gateway.fake_stage import ScriptedGenerator, pipeline
from tests.gateway.postgresql import postgresql_server


@pytest.fixture(scope="session")
def server():
    """The socket's folder of a PostgreSQL for all tests; `new_database` makes one for each."""
    with postgresql_server() as folder:
        yield folder


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
