"""A gateway that stands still in the middle of a transaction must not hold up the others on its PostgreSQL."""

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from gateway.journal import schema
from gateway.journal.schema import gateways, opened
from tests.gateway.postgresql import postgresql_server

MINE = sa.update(gateways).where(gateways.c.id == "a gateway").values(until_ms=1)


async def test_the_rows_of_a_transaction_that_stands_still_are_free_again(monkeypatch):
    monkeypatch.setitem(schema._POSTGRESQL_SETTINGS, "idle_in_transaction_session_timeout", "100ms")
    with postgresql_server() as folder:
        address = f"postgresql://postgres@/postgres?host={folder}"
        async with opened(address) as standing, opened(address) as other:
            async with other.begin() as connection:
                await connection.execute(sa.insert(gateways).values(id="a gateway", until_ms=0))
            async with standing.connect() as still:
                await still.execute(MINE)
                async with other.begin() as connection:
                    assert (await connection.execute(MINE)).rowcount == 1
                with pytest.raises(DBAPIError):
                    await still.execute(MINE)
                await still.invalidate()
