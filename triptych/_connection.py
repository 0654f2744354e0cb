"""A caller's connection to its gateway: the channel, opened anew when the files of its certificates change, and errors
that have types. It knows the calls of the contract by name, and nothing of what they are for.
"""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc

from triptych._grpc_options import KEEPALIVE, MESSAGE_SIZES
from triptych.credentials import Credentials
from triptych.errors import to_call_error
from triptych.v1.pipeline_pb2_grpc import PipelineServiceStub

if TYPE_CHECKING:
    from triptych.v1.pipeline_pb2_grpc import PipelineServiceAsyncStub

CHANNEL_OPTIONS = (
    *MESSAGE_SIZES,
    *KEEPALIVE,
    # Between connections gRPC itself waits as well, by default up to two minutes; the pauses are ours (resume.py).
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt to connect may take: on a busy machine or a slow link 100 ms are not enough.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

Answer = TypeVar("Answer")


class Connection:
    def __init__(self, address: str, credentials: Credentials) -> None:
        """Raises OSError for a file that cannot be read."""
        self.address = address
        self._credentials = credentials
        # Calls that were begun before a change go on where they are.
        self._channels: list[grpc.aio.Channel] = []
        self._stamps = credentials.stamps(address)
        self._stub = self._open()
        self._was_reached = False

    @property
    def stub(self) -> "PipelineServiceAsyncStub":
        """What new calls are made with."""
        try:
            stamps = self._credentials.stamps(self.address)
            if stamps != self._stamps:
                self._stub, self._stamps = self._open(), stamps
        except OSError:
            # In the middle of a change: what was there before is as good as it was.
            pass
        return self._stub

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def answer(self, call: Awaitable[Answer]) -> Answer:
        """What the call answers; raises CallError."""
        with self.typed_errors():
            answer = await call
            self.reached()
            return answer

    def reached(self) -> None:
        """Notes that the gateway has answered."""
        self._was_reached = True

    @contextmanager
    def typed_errors(self) -> Iterator[None]:
        """What gRPC raises inside the block leaves it as a CallError."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            typed = to_call_error(error, self.address)
            # An error with a reason is an answer, too.
            self._was_reached |= not typed.is_cut
            typed.is_first_contact = not self._was_reached
            raise typed from None

    def _open(self) -> "PipelineServiceAsyncStub":
        channel = self._credentials.open_channel(self.address, CHANNEL_OPTIONS)
        self._channels.append(channel)
        return self._credentials.authorize(PipelineServiceStub(channel))
