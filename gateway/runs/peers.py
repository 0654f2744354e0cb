"""What gateways that share a journal do for each other: they send commands to the owner of a run, answer what is asked of
their own, and take over what nobody carries out any more. It knows how that is left in tables, and no run.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from gateway.journal.database import JournalUnavailable
from gateway.journal.leases import LEASE_S, Leases, PeerCommand, read_error
from services.errors import NotReady, TriptychError

log = logging.getLogger(__name__)

# How often a gateway that shares its journal looks after what others left it, and after runs that nobody carries out.
POLL_EVERY_S = 0.25
HEARTBEAT_EVERY_S = LEASE_S / 4
# How long another gateway may take to answer a command, and how often it is looked for.
ANSWER_TIMEOUT_S = 15.0
ANSWER_EVERY_S = 0.1


class PeerCoordinator:
    """`execute` carries out a command for a run of this gateway; `on_heartbeat` is called when the lease was renewed."""

    def __init__(
        self,
        leases: Leases,
        execute: Callable[[PeerCommand], Awaitable[None]],
        on_heartbeat: Callable[[], Awaitable[None]],
    ) -> None:
        self._leases = leases
        self._execute = execute
        self._on_heartbeat = on_heartbeat
        # Commands that are being carried out, by their numbers.
        self._executing: dict[int, asyncio.Task[None]] = {}

    async def send(self, name: str, kind: str, payload: bytes, *, max_images: int | None = None) -> None:
        """Has the gateway that carries out the run do it; raises the error that this answers with."""
        command = await self._leases.send_command(name, kind, payload, max_images=max_images)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while (answer := await self._leases.poll_reply(command)) is None:  # noqa: ASYNC110 - another process sets it
                    await asyncio.sleep(ANSWER_EVERY_S)
        except TimeoutError:
            raise NotReady(f"the gateway that carries out {name} has not answered; ask again") from None
        finally:
            await self._leases.cancel_command(command)
        if answer:
            raise read_error(answer)

    async def run_forever(self) -> None:
        """Looks after all of that until it is cancelled."""
        renewed_at = -math.inf
        try:
            while True:
                try:
                    if time.monotonic() - renewed_at > HEARTBEAT_EVERY_S:
                        await self._leases.heartbeat()
                        renewed_at = time.monotonic()
                        await self._on_heartbeat()
                    for command in await self._leases.commands():
                        if command.id not in self._executing:
                            # Beside the next renewal: what a command waits for may take longer than the lease.
                            self._executing[command.id] = asyncio.create_task(self._reply(command))
                except JournalUnavailable as error:
                    log.warning("%s", error)
                except Exception:
                    log.exception("looking after the runs of this gateway failed")
                await asyncio.sleep(POLL_EVERY_S)
        finally:
            for task in self._executing.values():
                task.cancel()

    async def _reply(self, command: PeerCommand) -> None:
        refusal: TriptychError | None = None
        try:
            try:
                await self._execute(command)
            except TriptychError as error:
                refusal = error
            await self._leases.reply(command.id, refusal)
        finally:
            del self._executing[command.id]
