"""ssh connections to machines, kept open. Runs in Meadowrun's own environment, behind the bridge."""

import asyncio
from typing import Any

import meadowrun.ssh
from meadowrun.aws_integration import ec2_instance_allocation as allocation
from meadowrun.aws_integration.ec2_ssh_keys import get_meadowrun_ssh_key

SSH_TIMEOUT_S = 15.0

connections: dict[str, Any] = {}
# One for each of them.
watched: set[asyncio.Task[None]] = set()


async def connected(address: str, region: str, *, patient: bool = False) -> Any:
    """A connection that is kept; `patient`: to a machine that has just begun, and may not answer yet."""
    key = get_meadowrun_ssh_key(region) if address not in connections else None
    num_tries = 40 if patient else 1
    while address not in connections:
        num_tries -= 1
        try:
            connection = await asyncio.wait_for(
                meadowrun.ssh.connect(address, allocation.SSH_USER, key), SSH_TIMEOUT_S
            )
        except OSError:
            if not num_tries:
                raise
            await asyncio.sleep(1.0)
        else:
            connections[address] = connection
            watched.add(asyncio.create_task(_forget_when_closed(address, connection)))
    return connections[address]


async def _forget_when_closed(address: str, connection: Any) -> None:
    await connection.wait_closed()
    if connections.get(address) is connection:
        del connections[address]


async def shell(region: str, address: str, script: str) -> str:
    connection = await connected(address, region)
    done = await asyncio.wait_for(connection.run(script), SSH_TIMEOUT_S)
    return str(done.stdout)
