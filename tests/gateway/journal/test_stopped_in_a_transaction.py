"""A gateway that stands still in the middle of a transaction must not hold up the others on its PostgreSQL."""

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from gateway.journal import database
from gateway.journal.schema import gateways
from tests.gateway.postgresql import new_database

MINE = sa.update(gateways).where(gateways.c.id == "a gateway").values(until_ms=1)


async def test_the_rows_of_a_transaction_that_stands_still_are_free_again(server, monkeypatch):
    address = await new_database(server)
    async with database.open_database(address) as other:
        await other.write(lambda made: made.execute(sa.insert(gateways).values(id="a gateway", until_ms=0)))
        # Of the one that stands still alone: the other may be as slow as its machine.
        monkeypatch.setitem(database._POSTGRESQL_SETTINGS, "idle_in_transaction_session_timeout", "100ms")
        async with (
            database.open_database(address) as standing,
            standing._engine._engine.connect() as still,
        ):
            await still.execute(MINE)
            assert (await other.write(lambda mine: mine.execute(MINE).rowcount)) == 1
            with pytest.raises(DBAPIError):
                await still.execute(MINE)
            await still.invalidate()
