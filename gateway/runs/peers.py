"""What gateways that share a journal do for each other: they send commands to the owner of a run, answer what is asked of
their own, and take over what nobody carries out any more. It knows how that is left in tables, and no run.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from gateway.journal.database import JournalUnavailable
from gateway.journal.leases import LEASE_S, Leases, PeerCommand, read_error
from services.errors import NotReady, TriptychError
from triptych.v1.pipeline_pb2 import CancelRunRequest, SelectImagesRequest

log = logging.getLogger(__name__)

# How often a gateway that shares its journal looks after what others left it, and after runs that nobody carries out.
POLL_EVERY_S = 0.25
HEARTBEAT_EVERY_S = LEASE_S / 4
# How long another gateway may take to answer a command, and how often it is looked for.
ANSWER_TIMEOUT_S = 15.0
ANSWER_EVERY_S = 0.1


class Carrier(Protocol):
    """Who carries out runs here."""

    async def cancel(self, name: str, images: Sequence[str]) -> None: ...

    async def select(
        self,
        request_id: str,
        name: str,
        selections: Sequence[SelectImagesRequest.Selection],
        *,
        max_images: int | None = None,
    ) -> None: ...

    async def recover_all(self) -> None:
        """Carries out what nobody does, and leaves what others do."""

    def followed_elsewhere(self) -> Collection[str]:
        """Runs of other gateways that clients follow here."""


class PeerCoordinator:
    def __init__(self, leases: Leases, carrier: Carrier) -> None:
        self._leases = leases
        self._carrier = carrier
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
        renewed_at = 0.0
        try:
            while True:
                try:
                    if time.monotonic() - renewed_at > HEARTBEAT_EVERY_S:
                        await self._leases.heartbeat()
                        renewed_at = time.monotonic()
                        await self._leases.heartbeat_clients(self._carrier.followed_elsewhere())
                        await self._carrier.recover_all()
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
        try:
            await self._leases.reply(command.id, await self._execute(command))
        finally:
            del self._executing[command.id]

    async def _execute(self, command: PeerCommand) -> TriptychError | None:
        try:
            if command.kind == "cancel":
                cancel = CancelRunRequest.FromString(command.payload)
                await self._carrier.cancel(command.run, cancel.images)
            else:
                select = SelectImagesRequest.FromString(command.payload)
                most = command.max_images
                await self._carrier.select(select.request_id, command.run, select.selections, max_images=most)
        except TriptychError as error:
            return error
        return None
