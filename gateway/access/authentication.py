"""Bearer tokens: what the `authorization` header of either door makes of a call, a Caller or an error.

The tokens are hashes in a file (token_file.py) that is read again when it changes. HTTP asks `Authentication`; in front
of the gRPC servicer stands `TokenInterceptor`, and its methods ask `current_caller`.
"""

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import grpc

from gateway.access.caller import Caller
from gateway.access.token_file import TokenEntry, TokenFileError, hash_token, read_tokens, stamp
from services.errors import PermissionDenied, Unauthenticated
from services.serving.server import Context, parse

log = logging.getLogger(__name__)


class Authentication:
    """Everybody who may call. Without a file there are no tokens: all may, and all see everything."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises TokenFileError when there is a file and it cannot be used."""
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._entries: tuple[TokenEntry, ...] = ()
        if path is not None:
            self._stamp, self._entries = stamp(path), read_tokens(path)

    @property
    def is_open(self) -> bool:
        """Whether everybody may call."""
        return self._path is None

    def authenticate(self, authorization: str | None, *, peer: str = "") -> Caller:
        """The caller whose token it is; raises Unauthenticated without one and PermissionDenied for an unknown one.

        Where no token is asked for, the caller is whoever has the address `peer`.
        """
        if self._path is None:
            return Caller(peer or "local:", sees_all=True)
        self._read_again(self._path)
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "expected a token in the header `authorization: Bearer TOKEN` (on the command line TRIPTYCH_TOKEN), got none; "
                "whoever runs this gateway makes one with `triptych tokens add`"
            )
        digest = hash_token(token.strip())
        # All of them, also after the right one: how long it takes says nothing about what is in the file.
        found = [entry.caller for entry in self._entries if hmac.compare_digest(entry.sha256, digest)]
        if not found:
            raise PermissionDenied("this gateway does not know the token; it may have been revoked")
        return found[0]

    def _read_again(self, path: Path) -> None:
        """Takes up a changed file. One that cannot be used changes nothing: half an edit must lock nobody out."""
        try:
            new = stamp(path)
            if new == self._stamp:
                return
            self._entries, self._stamp = read_tokens(path), new
            log.info("read the tokens anew: there are %d", len(self._entries))
        except TokenFileError as error:
            if self._stamp:  # said once, not with every call
                log.error("the tokens stay as they were: %s", error)  # noqa: TRY400 - a file's fault, no bug's
            self._stamp = ()


_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Whoever made the gRPC call that is being served; raises LookupError outside of one."""
    return _current.get()


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call reach the servicer when it brings a token; nothing that others send is even parsed.

    Health and reflection pass: they say that there is a gateway, and what its public contract is.
    """

    def __init__(self, authentication: Authentication) -> None:
        self._authentication = authentication

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith("/triptych."):
            return handler
        header = next(
            (str(value) for key, value in details.invocation_metadata or () if key == "authorization"), None
        )

        def enter(data: bytes, context: Context) -> Any:
            # Every call has a task, and so a context, of its own: nobody has to take the caller out again.
            _current.set(self._authentication.authenticate(header, peer=host_of(context.peer())))
            return parse(handler.request_deserializer, data)

        if handler.unary_stream:

            async def stream(data: bytes, context: Context) -> AsyncIterator[Any]:
                async for response in handler.unary_stream(enter(data, context), context):
                    yield response

            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

        async def unary(data: bytes, context: Context) -> Any:
            return await handler.unary_unary(enter(data, context), context)

        return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)


def host_of(peer: str) -> str:
    """ "ipv4:10.0.0.7:53122" -> "ipv4:10.0.0.7": the calls of one machine share its turns."""
    return peer.rpartition(":")[0] or peer
