import pytest

from tests.gateway.scripted import pipeline


@pytest.fixture
async def gateway():
    """A gateway over one scripted worker of each stage."""
    async with pipeline() as running:
        yield running
