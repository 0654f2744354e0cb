"""What gateways that share a journal do for each other: they ask whoever carries out a run, answer what is asked of
their own, and take over what nobody carries out any more. It knows how that is left in tables, and no run.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from gateway.journal.leases import LEASE_S, Leases, PeerCommand, read_error
from gateway.journal.reader import JournalUnavailable
from services.errors import NotReady, TriptychError
from triptych.v1.pipeline_pb2 import CancelRunRequest, SelectImagesRequest

log = logging.getLogger(__name__)

# How often a gateway that shares its journal looks after what others left it, and after runs that nobody carries out.
TEND_EVERY_S = 0.25
RENEW_EVERY_S = LEASE_S / 4
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

    async def take_up_all(self) -> None:
        """Carries out what nobody does, and leaves what others do."""

    def attended_elsewhere(self) -> Collection[str]:
        """Runs of other gateways that somebody lives on here."""


class PeerCoordinator:
    def __init__(self, leases: Leases, carrier: Carrier) -> None:
        self._leases = leases
        self._carrier = carrier
        # Commands that are being carried out, by their numbers.
        self._obeying: dict[int, asyncio.Task[None]] = {}

    async def ask(self, name: str, kind: str, payload: bytes, *, max_images: int | None = None) -> None:
        """Has the gateway that carries out the run do it; raises the error that this answers with."""
        command = await self._leases.ask(name, kind, payload, max_images=max_images)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while (answer := await self._leases.read_answer(command)) is None:  # noqa: ASYNC110 - another process sets it
                    await asyncio.sleep(ANSWER_EVERY_S)
        except TimeoutError:
            raise NotReady(f"the gateway that carries out {name} has not answered; ask again") from None
        finally:
            await self._leases.withdraw(command)
        if answer:
            raise read_error(answer)

    async def tend(self) -> None:
        """Looks after all of that until it is cancelled."""
        renewed_at = 0.0
        try:
            while True:
                try:
                    if time.monotonic() - renewed_at > RENEW_EVERY_S:
                        await self._leases.renew()
                        renewed_at = time.monotonic()
                        await self._leases.attend(self._carrier.attended_elsewhere())
                        await self._carrier.take_up_all()
                    for command in await self._leases.commands():
                        if command.id not in self._obeying:
                            # Beside the next renewal: what a command waits for may take longer than the lease.
                            self._obeying[command.id] = asyncio.create_task(self._answer(command))
                except JournalUnavailable as error:
                    log.warning("%s", error)
                except Exception:
                    log.exception("looking after the runs of this gateway failed")
                await asyncio.sleep(TEND_EVERY_S)
        finally:
            for task in self._obeying.values():
                task.cancel()

    async def _answer(self, command: PeerCommand) -> None:
        try:
            await self._leases.answer(command.id, await self._obey(command))
        finally:
            del self._obeying[command.id]

    async def _obey(self, command: PeerCommand) -> TriptychError | None:
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
